// The microphone as blocks of 100 ms, and recordings as WAV files.
const contexts = new Map(); // audio contexts by their rate, with the recorder loaded: it needs no network later

export async function prepareMicrophone(rateHz) {
  if (!window.isSecureContext) throw new Error("Browsers give the microphone only to pages with HTTPS, and to localhost.");
  if (!contexts.has(rateHz)) {
    const context = new AudioContext({ sampleRate: rateHz });
    await context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    contexts.set(rateHz, context);
  }
  return contexts.get(rateHz);
}

// Ask for the microphone; `start` calls `onBlock` with each block, a Float32Array, until `release`.
export async function openMicrophone(rateHz) {
  const context = await prepareMicrophone(rateHz);
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  await context.resume();
  const source = context.createMediaStreamSource(microphone);
  const node = new AudioWorkletNode(context, "recorder");
  return {
    start(onBlock) {
      node.port.onmessage = ({ data }) => onBlock(data);
      source.connect(node);
    },
    release() {
      node.port.onmessage = null;
      source.disconnect();
      microphone.getTracks().forEach((track) => track.stop());
      context.suspend();
    },
  };
}

export function peak(block) {
  return Math.min(1, Math.max(...block.map(Math.abs)));
}

export function pcm16(samples) {
  return Int16Array.from(samples, (sample) => Math.round(32767 * Math.min(1, Math.max(-1, sample))));
}

export function wav(blocks, rateHz) {
  const data = blocks.map(pcm16);
  const nBytes = 2 * data.reduce((sum, block) => sum + block.length, 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (offset, value) => [...value].forEach((c, i) => header.setUint8(offset + i, c.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + nBytes, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, rateHz, true);
  header.setUint32(28, 2 * rateHz, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, nBytes, true);
  return new Blob([header, ...data], { type: "audio/wav" });
}
