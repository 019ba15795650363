// The microphone over OpenAI's realtime transcription, and what was recorded as a WAV file.
const RATE_HZ = 24000;

export async function startRecording({ model, key }, onCaption, onLevel, onBroken) {
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext({ sampleRate: RATE_HZ });
  await context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
  const socket = await open(model, key);
  const node = new AudioWorkletNode(context, "recorder");
  const recorded = [];
  const texts = new Map();
  let waiting = 0; // turns whose final text has not come
  let settled = () => {};

  node.port.onmessage = ({ data }) => {
    recorded.push(data);
    onLevel(Math.min(1, Math.max(...data.map(Math.abs))));
    send(socket, { type: "input_audio_buffer.append", audio: base64(pcm16(data)) });
  };
  socket.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    const kind = event.type.replace("conversation.item.input_audio_transcription.", "");
    if (kind === "input_audio_buffer.committed") waiting += 1;
    if (kind === "delta") {
      texts.set(event.item_id, (texts.get(event.item_id) ?? "") + event.delta);
      onCaption(event.item_id, texts.get(event.item_id), false);
    }
    if (kind === "completed") onCaption(event.item_id, event.transcript, true);
    if (kind === "completed" || kind === "failed") waiting -= 1;
    if (waiting === 0) settled();
  };
  let stopping = false;
  socket.onclose = ({ reason }) => {
    if (!stopping) {
      release();
      onBroken(reason || "The connection was lost.");
    }
    settled();
  };
  context.createMediaStreamSource(microphone).connect(node);

  function release() {
    microphone.getTracks().forEach((track) => track.stop());
    node.port.onmessage = null;
    context.close();
  }

  return {
    // Ends the recording, waits a moment for the last turn, and returns all of it.
    async stop() {
      stopping = true;
      release();
      send(socket, { type: "input_audio_buffer.commit" });
      await new Promise((resolve) => {
        settled = resolve;
        setTimeout(resolve, 3000);
      });
      socket.close();
      return wav(recorded);
    },
  };
}

function open(model, key) {
  const url = new URL("v1/realtime", document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  url.searchParams.set("intent", "transcription");
  url.searchParams.set("model", model);
  const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url, protocols);
    socket.onopen = () => resolve(socket);
    socket.onerror = () => reject(new Error("The live captions cannot be reached."));
  });
}

function send(socket, event) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(event));
}

function pcm16(samples) {
  return Int16Array.from(samples, (sample) => Math.round(32767 * Math.min(1, Math.max(-1, sample))));
}

function base64(values) {
  return btoa(String.fromCharCode(...new Uint8Array(values.buffer)));
}

function wav(blocks) {
  const data = blocks.map(pcm16);
  const n_bytes = 2 * data.reduce((sum, block) => sum + block.length, 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (at, value) => [...value].forEach((c, i) => header.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + n_bytes, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, RATE_HZ, true);
  header.setUint32(28, 2 * RATE_HZ, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, n_bytes, true);
  return new Blob([header, ...data], { type: "audio/wav" });
}
