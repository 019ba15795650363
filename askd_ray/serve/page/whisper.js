// A student in ONNX Runtime: one clip at a time, greedily, as askd_ray/models/whisper_onnx_engine.py decodes.
import { createLogMel } from "./logmel.js";
import { createTokenReader, readModelFile } from "./model_file.js";

const RATE_HZ = 16000;
const HOP = 160; // samples of a log-mel frame
const POSITION = 2 * HOP; // samples of an encoder position
const STEP = RATE_HZ / 5; // windows are multiples of 0.2 s
const PADDED = 30 * RATE_HZ; // the longest window
const [MIN_TOKENS, TOKENS_PER_S, MAX_TOKENS] = [16, 15, 224]; // as in askd_ray/text/tokens.py

// Returns the length of a clip's window in samples, as askd_ray/audio/units.py's DecodingWindow does.
export function windowSamples(nSamples, { silence_s, min_s }, nMels) {
  const needed = Math.max(nSamples + Math.round(silence_s * RATE_HZ), Math.round(min_s * RATE_HZ));
  let window = Math.ceil(Math.min(needed, PADDED) / STEP) * STEP;
  if (window === nMels * POSITION) window += STEP;
  return Math.min(window, PADDED);
}

// Open a model's file, an ArrayBuffer. `ort` is ONNX Runtime's module.
export async function openWhisper(ort, buffer) {
  const file = readModelFile(buffer);
  const open = (part) => ort.InferenceSession.create(file.part(part), { executionProviders: ["wasm"] });
  return new Whisper(ort, file, await open("encoder"), await open("decoder"));
}

class Whisper {
  constructor(ort, file, encoder, decoder) {
    const numbers = (name, type) => new type(file.part(name).slice().buffer);
    Object.assign(this, { ort, encoder, decoder });
    this.settings = (({ window, n_mels, n_heads, d_model, prompts, end }) => ({ window, n_mels, n_heads, d_model, prompts, end }))(file);
    this.never = file.suppress_tokens;
    this.notFirst = file.begin_suppress_tokens;
    this.logMel = createLogMel(numbers("mel_filters", Float32Array), file.n_mels);
    this.textOf = createTokenReader(file.part("tokens").slice(), numbers("token_ends", Uint32Array));
    this.past = decoder.inputNames.filter((name) => name.startsWith("past_key_values."));
  }

  get languages() {
    return Object.keys(this.settings.prompts);
  }

  // Returns the text of a clip of at most 30 s, a Float32Array at 16 kHz.
  async transcribe(waveform, language) {
    const { window, n_mels, end } = this.settings;
    const nSamples = windowSamples(waveform.length, window, n_mels);
    const nFrames = nSamples / HOP;
    const logMel = this.tensor("float32", this.logMel(waveform, nFrames), [1, n_mels, nFrames]);
    const { last_hidden_state: states } = await this.encoder.run({ input_features: logMel });
    const written = [];
    const maxTokens = Math.min(MIN_TOKENS + Math.floor((TOKENS_PER_S * nSamples) / RATE_HZ), MAX_TOKENS);
    let [ids, cache] = [this.settings.prompts[language], this.emptyCache()];
    while (written.length < maxTokens) {
      const logits = await this.step(ids, states, cache, written.length === 0);
      const id = this.bestToken(logits, written.length === 0);
      if (id === end) break;
      written.push(id);
      ids = [id];
    }
    return this.textOf(written.filter((id) => id < end));
  }

  // Read tokens, and add their keys and values to the cache. Those of the window are computed once, in the first step.
  async step(ids, states, cache, first) {
    const feeds = {
      input_ids: this.tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      encoder_hidden_states: states,
      use_cache_branch: this.tensor("bool", [!first], [1]),
      ...cache,
    };
    const changed = first ? this.past : this.past.filter((name) => name.includes(".decoder."));
    const outputOf = (name) => name.replace("past_key_values", "present");
    const outputs = await this.decoder.run(feeds, ["logits", ...changed.map(outputOf)]);
    for (const name of changed) cache[name] = outputs[outputOf(name)];
    return outputs.logits;
  }

  bestToken(logits, first) {
    const last = logits.data.subarray(logits.data.length - logits.dims[2]);
    for (const id of [...this.never, ...(first ? this.notFirst : [])]) last[id] = -Infinity;
    let best = 0;
    for (let id = 1; id < last.length; id++) if (last[id] > last[best]) best = id;
    return best;
  }

  emptyCache() {
    const { n_heads, d_model } = this.settings;
    const nothing = this.tensor("float32", new Float32Array(0), [1, n_heads, 0, d_model / n_heads]);
    return Object.fromEntries(this.past.map((name) => [name, nothing]));
  }

  tensor(type, data, dims) {
    return new this.ort.Tensor(type, data, dims);
  }
}
