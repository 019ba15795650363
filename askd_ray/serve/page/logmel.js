// Whisper's log-mel spectrogram of a clip in its trimmed window: the numbers of askd_ray/audio/logmel.py, but for rounding.
const N_FFT = 400; // samples in a frame: 25 ms
const HOP = 160; // samples from one frame to the next: 10 ms
const N_BINS = N_FFT / 2 + 1;
const QUARTER = N_FFT / 4;
const FLOOR = 1e-10; // smallest power before the logarithm
const RANGE = 8; // bels below the loudest bin

// Returns a function (waveform at 16 kHz, nFrames) -> Float32Array (nMels, nFrames), row by row.
// `filters` are the mel filters, a Float32Array (nMels, 201).
export function createLogMel(filters, nMels) {
  const bounds = Array.from({ length: nMels }, (_, mel) => nonZeroRange(filters, mel * N_BINS));
  const powerOf = createPowerSpectrum();
  return (waveform, nFrames) => {
    // The frames up to the first one wholly after the clip; the later ones of the window repeat it.
    const nComputed = Math.min(Math.ceil((waveform.length + N_FFT / 2) / HOP) + 1, nFrames);
    const logs = new Float32Array(nMels * nFrames);
    let loudest = -Infinity;
    for (let frame = 0; frame < nComputed; frame++) {
      const power = powerOf(waveform, frame, nComputed * HOP);
      for (let mel = 0; mel < nMels; mel++) {
        const [first, end] = bounds[mel];
        let sum = 0;
        for (let bin = first; bin < end; bin++) sum += filters[mel * N_BINS + bin] * power[bin];
        const log = Math.log10(Math.max(sum, FLOOR));
        logs[mel * nFrames + frame] = log;
        if (log > loudest) loudest = log;
      }
    }
    for (let mel = 0; mel < nMels; mel++) {
      const row = logs.subarray(mel * nFrames, (mel + 1) * nFrames);
      for (let frame = 0; frame < nComputed; frame++) row[frame] = (Math.max(row[frame], loudest - RANGE) + 4) / 4;
      row.fill(row[nComputed - 1], nComputed);
    }
    return logs;
  };
}

function nonZeroRange(filters, offset) {
  let first = 0;
  while (first < N_BINS && filters[offset + first] === 0) first++;
  let end = N_BINS;
  while (end > first && filters[offset + end - 1] === 0) end--;
  return [first, end];
}

// Returns a function (waveform, frame, length of the window) -> the powers (201) of a frame, in an array that it reuses.
// The discrete Fourier transform of 400 real samples, folded twice: sine and cosine at n, 200 - n, 200 + n and 400 - n
// differ in their signs only. So a bin takes 101 products for each of its two parts instead of 400.
function createPowerSpectrum() {
  const hann = Float64Array.from({ length: N_FFT }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / N_FFT));
  const angle = (i) => (2 * Math.PI * (Math.floor(i / (QUARTER + 1)) * (i % (QUARTER + 1)))) / N_FFT;
  const cosines = Float64Array.from({ length: N_BINS * (QUARTER + 1) }, (_, i) => Math.cos(angle(i)));
  const sines = Float64Array.from({ length: N_BINS * (QUARTER + 1) }, (_, i) => Math.sin(angle(i)));
  const samples = new Float64Array(N_FFT);
  // Of the even bins and of the odd bins.
  const even = [new Float64Array(QUARTER + 1), new Float64Array(QUARTER + 1)];
  const odd = [new Float64Array(QUARTER + 1), new Float64Array(QUARTER + 1)];
  const power = new Float64Array(N_BINS);

  return (waveform, frame, length) => {
    const start = frame * HOP - N_FFT / 2;
    for (let n = 0; n < N_FFT; n++) {
      let at = Math.abs(start + n); // the window is mirrored at both ends
      if (at >= length) at = 2 * (length - 1) - at;
      samples[n] = at < waveform.length ? hann[n] * waveform[at] : 0;
    }
    for (let n = 0; n <= QUARTER; n++) {
      const m = N_FFT / 2 - n;
      const a = n === 0 ? samples[0] : samples[n] + samples[N_FFT - n];
      const b = n === 0 ? samples[m] : samples[m] + samples[N_FFT - m];
      const c = n === 0 ? 0 : samples[n] - samples[N_FFT - n];
      const d = n === 0 ? 0 : samples[m] - samples[N_FFT - m];
      const once = n === QUARTER; // there n and 200 - n are the same
      even[0][n] = once ? a : a + b;
      even[1][n] = once ? a : a - b;
      odd[0][n] = once ? c : c - d;
      odd[1][n] = once ? c : c + d;
    }
    for (let bin = 0; bin < N_BINS; bin++) {
      const [forCosines, forSines] = [even[bin % 2], odd[bin % 2]];
      const row = bin * (QUARTER + 1);
      let real = 0;
      let imaginary = 0;
      for (let n = 0; n <= QUARTER; n++) {
        real += forCosines[n] * cosines[row + n];
        imaginary += forSines[n] * sines[row + n];
      }
      power[bin] = real * real + imaginary * imaginary;
    }
    return power;
  };
}
