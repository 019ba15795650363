// Format times and subtitles (SubRip, WebVTT).

export function clock(seconds, mark = ".") {
  const ms = Math.round(1000 * seconds);
  const twoDigits = (value) => String(Math.floor(value)).padStart(2, "0");
  const rest = `${twoDigits((ms / 60000) % 60)}:${twoDigits((ms / 1000) % 60)}${mark}${String(ms % 1000).padStart(3, "0")}`;
  return ms >= 3600000 || mark === "," ? `${twoDigits(ms / 3600000)}:${rest}` : rest;
}

export function subtitles(segments, form) {
  const mark = form === "srt" ? "," : ".";
  const cues = segments.map((segment, i) => {
    const number = form === "srt" ? `${i + 1}\n` : "";
    const text = segment.text.trim().replaceAll("-->", "->");
    return `${number}${clock(segment.start, mark)} --> ${clock(segment.end, mark)}\n${text}\n`;
  });
  return [...(form === "vtt" ? ["WEBVTT\n"] : []), ...cues].join("\n");
}
