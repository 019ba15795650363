// Runs a student in a thread of its own, so that the page stays responsive. One call at a time, in order.
import { isSilent, RATE_HZ, splitIntoChunks } from "./chunks.js";
import { openWhisper } from "./whisper.js";

const RUNTIME = new URL("runtime/ort.wasm.bundle.min.mjs", import.meta.url);
let whisper = null;
let last = Promise.resolve();

self.onmessage = ({ data: { id, method, args } }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ id, result: await methods[method](...args) });
    } catch (error) {
      self.postMessage({ id, error: error.message ?? String(error) });
    }
  });
};

const methods = {
  // Load the runtime and the model; returns its languages.
  async open(url, headers) {
    const buffer = await download(url, headers);
    const ort = await import(RUNTIME);
    whisper = await openWhisper(ort, buffer);
    await whisper.transcribe(new Float32Array(RATE_HZ), whisper.languages[0]); // the first call is slower
    return whisper.languages;
  },

  // Returns the texts of a waveform's chunks, with their times.
  async transcribe(waveform, language) {
    const segments = [];
    for (const [start, end] of splitIntoChunks(waveform)) {
      const chunk = waveform.subarray(start, end);
      const text = isSilent(chunk) ? "" : await whisper.transcribe(chunk, language);
      if (text) segments.push({ start: start / RATE_HZ, end: end / RATE_HZ, text });
    }
    return segments;
  },
};

async function download(url, headers) {
  const response = await fetch(url, { headers });
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `The server answered ${response.status}.`);
  }
  const total = Number(response.headers.get("Content-Length"));
  const blocks = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return new Blob(blocks).arrayBuffer();
    blocks.push(value);
    loaded += value.length;
    self.postMessage({ progress: { loaded, total } });
  }
}
