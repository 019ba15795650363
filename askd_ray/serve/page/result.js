// Show a transcript: its facts, its words with times and confidence, and the player; offer it as subtitles.
import { clock, subtitles } from "./subtitles.js";

const $ = (id) => document.getElementById(id);
const MIN_CONFIDENCE = 0.6; // words below this probability are underlined
const PLACES = { device: "Latency on this device", server: "Latency of the server" };
let transcript = null; // the transcript on the page

// `latencies` are in seconds, by the place where the clip was transcribed; `blob` is the audio.
export function showResult(result, latencies, blob, name) {
  transcript = { ...result, name: name.replace(/\.[^.]*$/, "") };
  const { words, segments } = result;
  showFacts(result, latencies);
  URL.revokeObjectURL($("player").src);
  $("player").src = URL.createObjectURL(blob);
  $("segments").replaceChildren(...segments.map((segment) => segmentRow(segment, words)));
  if (!segments.length) $("segments").textContent = "No speech was detected.";
  $("words-hint").hidden = !words.length;
  $("result").hidden = false;
}

export function showFacts({ words, duration, language }, latencies) {
  const confidence = words.reduce((sum, word) => sum + word.probability, 0) / words.length;
  $("facts").replaceChildren(
    factRow("Audio", `${duration.toFixed(1)} s, ${language}`),
    ...Object.entries(latencies).map(([place, seconds]) =>
      factRow(PLACES[place], `${Math.round(1000 * seconds)} ms, ${(duration / seconds).toFixed(1)} × real time`),
    ),
    ...(words.length ? [factRow("Confidence", `${Math.round(100 * confidence)} %`)] : []),
  );
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
  if (!text.childNodes.length) text.textContent = segment.text; // on this device, words have no times
  item.append(time, text);
  return item;
}

export function highlightSpokenWord() {
  const now = $("player").currentTime;
  for (const word of $("segments").querySelectorAll(".word")) {
    word.classList.toggle("now", !$("player").paused && now >= word.dataset.start && now < word.dataset.end);
  }
}

export function download(form) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([subtitles(transcript.segments, form)], { type: "text/plain" }));
  link.download = `${transcript.name}.${form}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export async function copyText() {
  await navigator.clipboard.writeText(transcript.text);
}
