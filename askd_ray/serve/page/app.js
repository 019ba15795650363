// The page of the service: transcribe a file or the microphone, on the server or on this device.
import { RATE_HZ } from "./chunks.js";
import { decodeAudio, openDevice } from "./device.js";
import { startDeviceRecording } from "./device_live.js";
import { startRecording } from "./live.js";
import { copyText, download, highlightSpokenWord, showFacts, showResult } from "./result.js";

const $ = (id) => document.getElementById(id);
let recording = null;
let device = null; // the model that was loaded on this device, with its name
let clip = null; // the last clip that was transcribed, with its result and its latencies

const onDevice = () => $("on-device").checked;

const headers = () => ($("key").value ? { Authorization: `Bearer ${$("key").value}` } : {});

function showStatus(text) {
  $("status").textContent = text;
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
  if (text) showStatus("");
}

async function parseResponse(response) {
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  if (response.status === 401) {
    $("key-label").hidden = false;
    $("key").focus();
  }
  throw new Error(answer?.error?.message ?? `The server answered ${response.status}.`);
}

async function listModels() {
  try {
    const { data } = await parseResponse(await fetch("v1/models", { headers: headers() }));
    $("model").replaceChildren(...data.map(({ id, version }) => new Option(`${id} (${version})`, id)));
    showError("");
    if (onDevice()) await loadDevice();
  } catch (error) {
    showError(error.message);
  }
}

// Load the chosen model on this device, where the switch says so and it is not there yet.
async function loadDevice() {
  showError("");
  showStatus("");
  $("language-label").hidden = true;
  if (!onDevice()) return;
  const model = $("model").value;
  disableInput(true);
  try {
    if (device?.model !== model) {
      device?.close();
      device = null;
      showStatus("Loading the model …");
      device = { model, ...(await openDevice({ model, key: $("key").value }, showProgress)) };
    }
    listLanguages(device.languages);
    showStatus("Ready on this device: your audio stays here, and no network is needed.");
  } catch (error) {
    $("on-device").checked = false;
    showError(error.message);
  }
  disableInput(false);
}

function showProgress({ loaded, total }) {
  const megabytes = (bytes) => Math.round(bytes / 1e6);
  showStatus(`Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB …`);
}

// While a model loads, nothing may be transcribed: it would go to the server.
function disableInput(disabled) {
  for (const id of ["on-device", "model", "record", "choose", "file"]) $(id).disabled = disabled;
}

const nameOf = (language) => new Intl.DisplayNames(["en"], { type: "language" }).of(language);

function listLanguages(languages) {
  const options = languages.map((code) => new Option(nameOf(code), code));
  options.sort((a, b) => a.text.localeCompare(b.text));
  $("language").replaceChildren(...options);
  const preferred = navigator.language.slice(0, 2);
  $("language").value = languages.includes(preferred) ? preferred : languages[0];
  $("language-label").hidden = languages.length === 1;
}

async function transcribe(blob, name) {
  if ($("choose").disabled || (onDevice() && !device)) return; // the model is loading
  showError("");
  $("result").hidden = true;
  showStatus(`Transcribing ${name} …`);
  const place = onDevice() ? "device" : "server";
  try {
    const { result, seconds } = await timed(() => (onDevice() ? transcribeHere(blob) : transcribeOnServer(blob, name)));
    clip = { blob, name, result, latencies: { [place]: seconds } };
    showResult(result, clip.latencies, blob, name);
    $("compare").hidden = !onDevice();
    showStatus("Done.");
  } catch (error) {
    showError(error.message);
  }
}

async function timed(work) {
  const begun = performance.now();
  const result = await work();
  return { result, seconds: (performance.now() - begun) / 1000 };
}

async function transcribeOnServer(blob, name) {
  const form = new FormData();
  form.append("file", blob, name);
  form.append("model", $("model").value);
  form.append("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "word");
  form.append("timestamp_granularities[]", "segment");
  const request = { method: "POST", body: form, headers: headers() };
  return parseResponse(await fetch("v1/audio/transcriptions", request));
}

async function transcribeHere(blob) {
  const waveform = await decodeAudio(blob);
  const language = $("language").value;
  const segments = await device.transcribe(waveform, language);
  const text = segments.map((segment) => segment.text).join(" ");
  return { text, segments, words: [], duration: waveform.length / RATE_HZ, language: nameOf(language).toLowerCase() };
}

// Transcribe the clip on the server too, for its latency.
async function compareWithServer() {
  showError("");
  $("compare").disabled = true;
  try {
    const { seconds } = await timed(() => transcribeOnServer(clip.blob, clip.name));
    clip.latencies.server = seconds;
    showFacts(clip.result, clip.latencies);
  } catch (error) {
    showError(`The server cannot be asked: ${error.message}`);
  }
  $("compare").disabled = false;
}

async function toggleRecording() {
  showError("");
  if (recording) {
    const stopped = recording;
    recording = null;
    $("record").disabled = true;
    showStatus("Finishing …");
    const wav = await stopped.stop();
    await transcribe(wav, "recording.wav");
    resetRecordButton();
    return;
  }
  $("captions").replaceChildren();
  $("captions-section").hidden = false;
  $("result").hidden = true;
  try {
    const options = { model: $("model").value, key: $("key").value };
    const callbacks = [showCaption, (level) => ($("level").value = level), onRecordingFailed];
    recording = onDevice()
      ? await startDeviceRecording(device, $("language").value, ...callbacks)
      : await startRecording(options, ...callbacks);
    $("on-device").disabled = $("model").disabled = true;
    $("record").textContent = "Stop";
    $("record").setAttribute("aria-pressed", "true");
    $("level").hidden = false;
    showStatus("Listening …");
  } catch (error) {
    showError(error.message);
    resetRecordButton();
  }
}

function onRecordingFailed(message) {
  showError(message);
  recording = null;
  resetRecordButton();
}

function resetRecordButton() {
  for (const id of ["record", "on-device", "model"]) $(id).disabled = false;
  $("record").textContent = "Record";
  $("record").setAttribute("aria-pressed", "false");
  $("level").hidden = true;
}

// One paragraph per turn: partial results, then the final text when the turn ends.
function showCaption(item, text, final) {
  let paragraph = document.getElementById(item);
  if (!paragraph) {
    paragraph = document.createElement("p");
    paragraph.id = item;
    $("captions").append(paragraph);
  }
  paragraph.textContent = text;
  paragraph.classList.toggle("partial", !final);
  paragraph.hidden = final && !text;
}

$("record").addEventListener("click", toggleRecording);
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) transcribe(file, file.name);
  $("file").value = "";
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) transcribe(file, file.name);
});
$("key").addEventListener("change", listModels);
$("player").addEventListener("timeupdate", highlightSpokenWord);
$("player").addEventListener("pause", highlightSpokenWord);
$("srt").addEventListener("click", () => download("srt"));
$("vtt").addEventListener("click", () => download("vtt"));
$("copy").addEventListener("click", async () => {
  await copyText();
  showStatus("Copied.");
});
$("on-device").addEventListener("change", loadDevice);
$("model").addEventListener("change", loadDevice);
$("compare").addEventListener("click", compareWithServer);
listModels();
