// The page of the service: a file or the microphone in, words with times and confidence out.
import { startRecording } from "./live.js";
import { clock, subtitles } from "./subtitles.js";

const $ = (id) => document.getElementById(id);
const DOUBTFUL = 0.6; // words below this probability are underlined
let shown = null; // the transcript on the page
let recording = null;

const headers = () => ($("key").value ? { Authorization: `Bearer ${$("key").value}` } : {});

function say(text) {
  $("status").textContent = text;
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
  if (text) say("");
}

async function answerOf(response) {
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
    const { data } = await answerOf(await fetch("v1/models", { headers: headers() }));
    $("model").replaceChildren(...data.map(({ id, version }) => new Option(`${id} (${version})`, id)));
    complain("");
  } catch (error) {
    complain(error.message);
  }
}

async function transcribe(blob, name) {
  complain("");
  $("result").hidden = true;
  say(`Transcribing ${name} …`);
  const form = new FormData();
  form.append("file", blob, name);
  form.append("model", $("model").value);
  form.append("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "word");
  form.append("timestamp_granularities[]", "segment");
  const begun = performance.now();
  try {
    const request = { method: "POST", body: form, headers: headers() };
    const result = await answerOf(await fetch("v1/audio/transcriptions", request));
    show(result, (performance.now() - begun) / 1000, blob, name);
  } catch (error) {
    complain(error.message);
  }
}

function fact(name, value) {
  const row = document.createElement("div");
  const term = document.createElement("dt");
  const description = document.createElement("dd");
  term.textContent = name;
  description.textContent = value;
  row.append(term, description);
  return row;
}

function show(result, seconds, blob, name) {
  shown = { ...result, name: name.replace(/\.[^.]*$/, "") };
  const { words, segments, duration, language } = result;
  const sure = words.length ? words.reduce((sum, word) => sum + word.probability, 0) / words.length : null;
  $("facts").replaceChildren(
    fact("Audio", `${duration.toFixed(1)} s, ${language}`),
    fact("Latency", `${Math.round(1000 * seconds)} ms`),
    fact("Speed", `${(duration / seconds).toFixed(1)} × real time`),
    fact("Confidence", sure === null ? "–" : `${Math.round(100 * sure)} %`),
  );
  URL.revokeObjectURL($("player").src);
  $("player").src = URL.createObjectURL(blob);
  $("segments").replaceChildren(...segments.map((segment) => line(segment, words)));
  if (!segments.length) $("segments").textContent = "Nothing was said.";
  $("result").hidden = false;
  say("Done.");
}

function line(segment, words) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = `${clock(segment.start)} – ${clock(segment.end)}`;
  const text = document.createElement("span");
  for (const word of words.filter((w) => w.start >= segment.start && w.end <= segment.end)) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = word.probability < DOUBTFUL ? "word doubt" : "word";
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

function follow() {
  const now = $("player").currentTime;
  for (const word of $("segments").querySelectorAll(".word")) {
    word.classList.toggle("now", !$("player").paused && now >= word.dataset.start && now < word.dataset.end);
  }
}

function download(form) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([subtitles(shown.segments, form)], { type: "text/plain" }));
  link.download = `${shown.name}.${form}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function toggleRecording() {
  complain("");
  if (recording) {
    const stopped = recording;
    recording = null;
    $("record").disabled = true;
    say("Finishing …");
    const wav = await stopped.stop();
    await transcribe(wav, "recording.wav");
    settle();
    return;
  }
  $("captions").replaceChildren();
  $("captions-section").hidden = false;
  $("result").hidden = true;
  try {
    const options = { model: $("model").value, key: $("key").value };
    recording = await startRecording(options, caption, (level) => ($("level").value = level), broken);
    $("record").textContent = "Stop";
    $("record").setAttribute("aria-pressed", "true");
    $("level").hidden = false;
    say("Listening …");
  } catch (error) {
    complain(error.message);
    settle();
  }
}

function broken(message) {
  complain(message);
  recording = null;
  settle();
}

function settle() {
  $("record").disabled = false;
  $("record").textContent = "Record";
  $("record").setAttribute("aria-pressed", "false");
  $("level").hidden = true;
}

// One paragraph a turn: what is certain so far, and the final text when the turn ends.
function caption(item, text, final) {
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
$("player").addEventListener("timeupdate", follow);
$("player").addEventListener("pause", follow);
$("srt").addEventListener("click", () => download("srt"));
$("vtt").addEventListener("click", () => download("vtt"));
$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(shown.text);
  say("Copied.");
});
listModels();
