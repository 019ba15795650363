// Send the microphone to OpenAI's realtime transcription API, and return the recording as a WAV file.
import { openMicrophone, pcm16, peak, wav } from "./microphone.js";

const RATE_HZ = 24000;

export async function startRecording({ model, key }, onCaption, onLevel, onFailure) {
  const microphone = await openMicrophone(RATE_HZ);
  const socket = await openSocket(model, key).catch((error) => {
    microphone.release();
    throw error;
  });
  const recorded = [];
  const texts = new Map();
  let pendingTurns = 0; // turns without a final text
  let onAllTurnsDone = () => {};

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
      microphone.release();
      onFailure(reason || "The connection was lost.");
    }
    onAllTurnsDone();
  };
  microphone.start((block) => {
    recorded.push(block);
    onLevel(peak(block));
    send(socket, { type: "input_audio_buffer.append", audio: base64(pcm16(block)) });
  });

  return {
    // Stop the recording, wait up to 3 s for the last turn, and return the whole recording.
    async stop() {
      stopping = true;
      microphone.release();
      send(socket, { type: "input_audio_buffer.commit" });
      await new Promise((resolve) => {
        onAllTurnsDone = resolve;
        setTimeout(resolve, 3000);
      });
      socket.close();
      return wav(recorded, RATE_HZ);
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

function base64(values) {
  return btoa(String.fromCharCode(...new Uint8Array(values.buffer)));
}
