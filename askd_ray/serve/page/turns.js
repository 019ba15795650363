// Find turns in blocks of 100 ms by their loudness. Simpler than the service's speech detection, and needs no model.
import { loudness, quietest, RATE_HZ } from "./chunks.js";

const BEFORE = 3; // blocks before the first loud one: a word begins softly
const PAUSE = 6; // quiet blocks that end a turn
const MAX_TURN = 20 * RATE_HZ; // samples of the longest turn
const SEARCH = 5 * RATE_HZ; // samples at the end of such a turn, where it is cut at the quietest point
const HISTORY = 50; // blocks whose quietest one is the noise of the room
const [MIN_LEVEL, MAX_LEVEL] = [0.002, 0.02]; // -54 to -34 dB: what counts as loud, whatever the noise
const ABOVE_NOISE = 3;

export class TurnDetector {
  #levels = [];
  #before = [];
  #blocks = null; // those of the turn, or null between turns
  #quiet = 0;

  // Add a block; returns the waveform of a turn that it ends, or null.
  push(block) {
    const loud = this.#isLoud(block);
    if (this.#blocks === null) {
      this.#before = [...this.#before, block].slice(-BEFORE - 1);
      if (loud) [this.#blocks, this.#before, this.#quiet] = [this.#before, [], 0];
      return null;
    }
    this.#blocks.push(block);
    this.#quiet = loud ? 0 : this.#quiet + 1;
    if (this.#quiet >= PAUSE) return this.end();
    return this.waveform.length >= MAX_TURN ? this.#cut() : null;
  }

  // Returns the waveform of the turn so far, or null between turns.
  get waveform() {
    return this.#blocks && join(this.#blocks);
  }

  // End the turn; returns its waveform, or null between turns.
  end() {
    const waveform = this.waveform;
    this.#blocks = null;
    return waveform;
  }

  // End a long turn at its quietest point; the rest begins the next one.
  #cut() {
    const waveform = this.waveform;
    const at = quietest(waveform, waveform.length - SEARCH, waveform.length);
    this.#blocks = [waveform.slice(at)];
    return waveform.slice(0, at);
  }

  #isLoud(block) {
    const level = loudness(block);
    this.#levels = [...this.#levels, level].slice(-HISTORY);
    const noise = Math.min(...this.#levels);
    return level > Math.min(Math.max(ABOVE_NOISE * noise, MIN_LEVEL), MAX_LEVEL);
  }
}

function join(blocks) {
  const waveform = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let at = 0;
  for (const block of blocks) {
    waveform.set(block, at);
    at += block.length;
  }
  return waveform;
}
