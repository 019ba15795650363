"""Reader of Kaldi's data folders: wav.scp, with text, segments, utt2spk and utt2lang beside it."""

from collections.abc import Iterator
from dataclasses import dataclass

from askd_ray.config.source import Source
from askd_ray.data.sources.files import SourceFile
from askd_ray.data.sources.manifest import open_text
from askd_ray.data.sources.record import SourceRecord
from askd_ray.errors import AskdError
from askd_ray.location import Location

_COMMAND = "unreadable audio: wav.scp names a command, and none is run: write its output to a file"


@dataclass(frozen=True)
class _KaldiUtterance:
    """An utterance in a recording; without ``times`` it is the whole recording."""

    id: str
    recording: str
    where: str
    times: tuple[str, ...] = ()


def read_kaldi(source: Source, file: SourceFile, needs_text: bool) -> Iterator[SourceRecord]:
    """Yield the utterances of a folder: those of segments, or else those of wav.scp; then texts without audio.

    Raises :class:`AskdError`: no text although ``needs_text``, a malformed line, or a repeated id.
    """
    folder = file.location.parent
    texts = _mapping(folder / "text", required=needs_text)
    speakers, languages = (_mapping(folder / name, required=False) for name in ("utt2spk", "utt2lang"))
    recordings = _mapping(file.location, required=True)
    for utterance in _utterances(folder, recordings):
        audio = recordings.get(utterance.recording, "").strip()
        values = {
            "text": texts.pop(utterance.id, ""),
            "speaker": speakers.get(utterance.id, ""),
            "language": languages.get(utterance.id, ""),
            **dict(zip(("start_s", "end_s"), utterance.times, strict=False)),
        }
        problem = _COMMAND if audio.endswith("|") or audio.startswith("|") else ""
        if not audio:
            problem = f"no audio: wav.scp has no recording {utterance.recording}"
        path = b"" if problem else audio
        yield SourceRecord(values, utterance.where, path, id=f"{file.label_of(utterance.id)}", problem=problem)
    for utterance_id in texts:
        yield SourceRecord(
            {},
            f"{folder / 'text'}:{utterance_id}",
            b"",
            id=file.label_of(utterance_id),
            problem="no audio: only a text",
        )


def _utterances(folder: Location, recordings: dict[str, str]) -> Iterator[_KaldiUtterance]:
    segments = folder / "segments"
    if not segments.is_file():
        for name in recordings:
            yield _KaldiUtterance(name, name, f"{folder / 'wav.scp'}:{name}")
        return
    with open_text(segments) as lines:
        for number, line in enumerate(lines, start=1):
            cells, where = line.split(), f"{segments}:{number}"
            if len(cells) not in (0, 4):
                raise AskdError(f"{where}: {len(cells)} words, and UTTERANCE RECORDING START END is needed")
            if cells:
                end = cells[3:] if cells[3] != "-1" else []  # -1 is the end of the recording
                yield _KaldiUtterance(cells[0], cells[1], where, (cells[2], *end))


def _mapping(file: Location, required: bool) -> dict[str, str]:
    """Return the lines of a file, keyed by their first word."""
    if not required and not file.is_file():
        return {}
    lines_by_id: dict[str, str] = {}
    with open_text(file) as lines:
        for number, line in enumerate(lines, start=1):
            name, _, rest = line.strip().partition(" ") if "\t" not in line else line.strip().partition("\t")
            if name in lines_by_id:
                raise AskdError(f"{file}:{number}: {name!r} occurs twice")
            if name:
                lines_by_id[name] = rest.strip()
    return lines_by_id
