// Cut audio at quiet points, by its energy; every sample stays in a chunk.
export const RATE_HZ = 16000;
const MAX_CHUNK = 20 * RATE_HZ; // as askd_ray/audio/chunking.py: students are trained with few longer clips
const SEARCH = 5 * RATE_HZ; // search this far back from a chunk's end for a quiet point
const MIN_CHUNK = RATE_HZ; // so that no chunk is a fragment of a word
const QUIET = RATE_HZ / 10; // loudness is measured over this length
const STEP = RATE_HZ / 100;
const SILENT = 1e-4; // loudness below which nobody can be heard: -80 dB of full scale

// Returns the [start, end] of chunks of at most 20 s.
export function splitIntoChunks(waveform) {
  const chunks = [];
  let start = 0;
  while (waveform.length - start > MAX_CHUNK) {
    const last = Math.min(start + MAX_CHUNK, waveform.length - MIN_CHUNK);
    const cut = quietest(waveform, last - SEARCH, last);
    chunks.push([start, cut]);
    start = cut;
  }
  return [...chunks, [start, waveform.length]];
}

// Returns the middle of the quietest 100 ms between two samples; of equally quiet ones, that of the last.
export function quietest(waveform, first, last) {
  let [best, at] = [Infinity, first];
  for (let start = first; start + QUIET <= last; start += STEP) {
    const level = loudness(waveform.subarray(start, start + QUIET));
    if (level <= best) [best, at] = [level, start];
  }
  return at + QUIET / 2;
}

// Returns the root mean square of samples.
export function loudness(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.sqrt(sum / Math.max(1, samples.length));
}

// Whether a waveform is digital silence, into which models write words.
export function isSilent(waveform) {
  for (let at = 0; at < waveform.length; at += QUIET) {
    if (loudness(waveform.subarray(at, at + QUIET)) > SILENT) return false;
  }
  return true;
}
