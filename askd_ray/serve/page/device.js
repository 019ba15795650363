// The student on the visitor's own machine: a worker computes, and no audio is sent.
import { RATE_HZ } from "./chunks.js";
import { openMicrophone, prepareMicrophone } from "./microphone.js";

// Load a model; afterwards it needs no network. `onProgress` gets {loaded, total} in bytes.
export async function openDevice({ model, key }, onProgress) {
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  const waiting = new Map();
  let nCalls = 0;
  worker.onmessage = ({ data: { id, result, error, progress } }) => {
    if (progress) return onProgress(progress);
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    return error === undefined ? resolve(result) : reject(new Error(error));
  };
  worker.onerror = ({ message }) => {
    for (const { reject } of waiting.values()) reject(new Error(message || "The model's thread does not start."));
    waiting.clear();
  };
  const call = (method, ...args) =>
    new Promise((resolve, reject) => {
      waiting.set(++nCalls, { resolve, reject });
      worker.postMessage({ id: nCalls, method, args });
    });
  const url = new URL(`v1/browser/${encodeURIComponent(model)}`, document.baseURI).href;
  try {
    const languages = await call("open", url, key ? { Authorization: `Bearer ${key}` } : {});
    await prepareMicrophone(RATE_HZ).catch(() => {}); // files need none; recording shows the error
    return {
      languages,
      // Returns the texts of a waveform's chunks, with their times.
      transcribe: (waveform, language) => call("transcribe", waveform, language),
      close: () => worker.terminate(),
    };
  } catch (error) {
    worker.terminate();
    throw error;
  }
}

// Returns the waveform of an audio file at 16 kHz, of one channel: the mean of all.
export async function decodeAudio(blob) {
  const context = new OfflineAudioContext(1, 1, RATE_HZ);
  const decoded = await context.decodeAudioData(await blob.arrayBuffer()).catch(() => {
    throw new Error("This browser cannot decode the file. The server may: turn the switch off, and try again.");
  });
  const waveform = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    decoded.getChannelData(channel).forEach((sample, i) => (waveform[i] += sample / decoded.numberOfChannels));
  }
  return waveform;
}
