// Send the microphone to OpenAI's realtime transcription API, and return the recording as a WAV file.
const RATE_HZ = 24000;

export async function startRecording({ model, key }, onCaption, onLevel, onFailure) {
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext({ sampleRate: RATE_HZ });
  await context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
  const socket = await openSocket(model, key);
  const node = new AudioWorkletNode(context, "recorder");
  const recorded = [];
  const texts = new Map();
  let pendingTurns = 0; // turns without a final text
  let onAllTurnsDone = () => {};

  node.port.onmessage = ({ data }) => {
    recorded.push(data);
    onLevel(Math.min(1, Math.max(...data.map(Math.abs))));
    send(socket, { type: "input_audio_buffer.append", audio: base64(pcm16(data)) });
  };
  socket.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    const kind = event.type.replace("conversation.item.input_audio_transcription.", "");
    if (kind === "input_audio_buffer.committed") pendingTurns += 1;
    if (kind === "delta") {
      texts.set(event.item_id, (texts.get(event.item_id) ?? "") + event.delta);
      onCaption(event.item_id, texts.get(event.item_id), false);
    }
    if (kind === "completed") onCaption(event.item_id, event.transcript, true);
    if (kind === "completed" || kind === "failed") pendingTurns -= 1;
    if (pendingTurns === 0) onAllTurnsDone();
  };
  let stopping = false;
  socket.onclose = ({ reason }) => {
    if (!stopping) {
      release();
      onFailure(reason || "The connection was lost.");
    }
    onAllTurnsDone();
  };
  context.createMediaStreamSource(microphone).connect(node);

  function release() {
    microphone.getTracks().forEach((track) => track.stop());
    node.port.onmessage = null;
    context.close();
  }

  return {
    // Stop the recording, wait up to 3 s for the last turn, and return the whole recording.
    async stop() {
      stopping = true;
      release();
      send(socket, { type: "input_audio_buffer.commit" });
      await new Promise((resolve) => {
        onAllTurnsDone = resolve;
        setTimeout(resolve, 3000);
      });
      socket.close();
      return wav(recorded);
    },
  };
}

function openSocket(model, key) {
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
  const nBytes = 2 * data.reduce((sum, block) => sum + block.length, 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (offset, value) => [...value].forEach((c, i) => header.setUint8(offset + i, c.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + nBytes, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, RATE_HZ, true);
  header.setUint32(28, 2 * RATE_HZ, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, nBytes, true);
  return new Blob([header, ...data], { type: "audio/wav" });
}
