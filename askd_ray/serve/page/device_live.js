// Live captions from the student on this device; nothing is sent.
import { RATE_HZ } from "./chunks.js";
import { openMicrophone, peak, wav } from "./microphone.js";
import { TurnDetector } from "./turns.js";

const MIN_PARTIAL = RATE_HZ / 2; // samples of new audio between two partial results

export async function startDeviceRecording(device, language, onCaption, onLevel, onFailure) {
  const microphone = await openMicrophone(RATE_HZ);
  const turns = new TurnDetector();
  const recorded = [];
  let turn = newTurn();
  let finals = Promise.resolve();
  let busy = false; // a partial result is being computed

  async function textOf(waveform) {
    const segments = await device.transcribe(waveform, language);
    return segments.map(({ text }) => text).join(" ");
  }

  async function caption(id, waveform, final) {
    try {
      const text = await textOf(waveform);
      if (final || id === turn.id) onCaption(id, text, final);
    } catch (error) {
      microphone.release();
      onFailure(error.message);
    }
  }

  function finish(waveform) {
    const { id } = turn;
    turn = newTurn();
    finals = finals.then(() => caption(id, waveform, true));
  }

  async function showPartial() {
    const { waveform } = turns;
    if (busy || waveform === null || waveform.length - turn.nTranscribed < MIN_PARTIAL) return;
    busy = true;
    turn.nTranscribed = waveform.length;
    await caption(turn.id, waveform, false);
    busy = false;
  }

  microphone.start((block) => {
    recorded.push(block);
    onLevel(peak(block));
    const ended = turns.push(block);
    if (ended) finish(ended);
    showPartial();
  });

  return {
    // Stop the recording, wait for the last turn, and return the whole recording.
    async stop() {
      microphone.release();
      const rest = turns.end();
      if (rest) finish(rest);
      await finals;
      return wav(recorded, RATE_HZ);
    },
  };
}

function newTurn() {
  return { id: `turn-${crypto.randomUUID()}`, nTranscribed: 0 };
}
