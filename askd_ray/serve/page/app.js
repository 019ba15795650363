// The page of the service: transcribe a file or the microphone; show words with times and confidence.
import { startRecording } from "./live.js";
import { clock, subtitles } from "./subtitles.js";

const $ = (id) => document.getElementById(id);
const MIN_CONFIDENCE = 0.6; // words below this probability are underlined
let transcript = null; // the transcript on the page
let recording = null;

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
  } catch (error) {
    showError(error.message);
  }
}

async function transcribe(blob, name) {
  showError("");
  $("result").hidden = true;
  showStatus(`Transcribing ${name} …`);
  const form = new FormData();
  form.append("file", blob, name);
  form.append("model", $("model").value);
  form.append("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "word");
  form.append("timestamp_granularities[]", "segment");
  const begun = performance.now();
  try {
    const request = { method: "POST", body: form, headers: headers() };
    const result = await parseResponse(await fetch("v1/audio/transcriptions", request));
    show(result, (performance.now() - begun) / 1000, blob, name);
  } catch (error) {
    showError(error.message);
  }
}

function factRow(name, value) {
  const row = document.createElement("div");
  const term = document.createElement("dt");
  const description = document.createElement("dd");
  term.textContent = name;
  description.textContent = value;
  row.append(term, description);
  return row;
}

function show(result, seconds, blob, name) {
  transcript = { ...result, name: name.replace(/\.[^.]*$/, "") };
  const { words, segments, duration, language } = result;
  const confidence = words.length ? words.reduce((sum, word) => sum + word.probability, 0) / words.length : null;
  $("facts").replaceChildren(
    factRow("Audio", `${duration.toFixed(1)} s, ${language}`),
    factRow("Latency", `${Math.round(1000 * seconds)} ms`),
    factRow("Speed", `${(duration / seconds).toFixed(1)} × real time`),
    factRow("Confidence", confidence === null ? "–" : `${Math.round(100 * confidence)} %`),
  );
  URL.revokeObjectURL($("player").src);
  $("player").src = URL.createObjectURL(blob);
  $("segments").replaceChildren(...segments.map((segment) => segmentRow(segment, words)));
  if (!segments.length) $("segments").textContent = "No speech was detected.";
  $("result").hidden = false;
  showStatus("Done.");
}

function segmentRow(segment, words) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = `${clock(segment.start)} – ${clock(segment.end)}`;
  const text = document.createElement("span");
  for (const word of words.filter((w) => w.start >= segment.start && w.end <= segment.end)) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = word.probability < MIN_CONFIDENCE ? "word doubt" : "word";
    button.textContent = word.word;
    button.title = `${Math.round(100 * word.probability)} % at ${clock(word.start)}`;
    button.dataset.start = word.start;
    button.dataset.end = word.end;
    button.addEventListener("click", () => {
      $("player").currentTime = word.start;
      $("player").play();
    });
    text.append(button, " ");
  }
  item.append(time, text);
  return item;
}

function highlightSpokenWord() {
  const now = $("player").currentTime;
  for (const word of $("segments").querySelectorAll(".word")) {
    word.classList.toggle("now", !$("player").paused && now >= word.dataset.start && now < word.dataset.end);
  }
}

function download(form) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([subtitles(transcript.segments, form)], { type: "text/plain" }));
  link.download = `${transcript.name}.${form}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
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
    recording = await startRecording(options, showCaption, (level) => ($("level").value = level), onRecordingFailed);
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
  $("record").disabled = false;
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
  await navigator.clipboard.writeText(transcript.text);
  showStatus("Copied.");
});
listModels();
