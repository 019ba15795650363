"""Reader of Lhotse's cuts (cuts.jsonl.gz): each supervision of a cut becomes a row, a chunk of the cut's recording."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from askd_ray.config.source import Source
from askd_ray.data.sources.files import SourceFile
from askd_ray.data.sources.manifest import read_table
from askd_ray.data.sources.record import SourceRecord

_Json = Mapping[str, Any]


def read_lhotse(source: Source, file: SourceFile, needs_text: bool) -> Iterator[SourceRecord]:
    """Yield a row for each supervision of each cut; a cut without supervisions becomes one row without a text."""
    for number, cut in read_table(file.location):
        where = f"{file.location}:{number}"
        try:
            yield from _records(file, cut, where)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"no Lhotse cut: {type(error).__name__} {error}"
            yield SourceRecord({}, where, b"", id=f"{file.label}:{number}", problem=problem)


def _records(file: SourceFile, cut: _Json, where: str) -> list[SourceRecord]:
    """Return the rows of a cut; a malformed cut raises the error of its values, and none of its rows are returned."""
    name = f"{file.label}:{cut['id']}"
    audio, problem = _audio(cut)
    if problem:
        return [SourceRecord({}, where, audio, id=name, problem=problem)]
    begin_s, supervisions = float(cut.get("start", 0.0)), cast(Sequence[_Json], cut.get("supervisions") or [])
    records: list[SourceRecord] = []
    for n, supervision in enumerate(supervisions or [{"start": 0.0, "duration": cut.get("duration")}]):
        start_s, duration_s = begin_s + float(supervision["start"]), float(supervision["duration"])
        values: dict[str, Any] = {key: supervision.get(key) for key in ("text", "speaker", "language")}
        if not _is_whole(cut, start_s, duration_s):
            values |= {"start_s": start_s, "end_s": start_s + duration_s}
        channel = supervision.get("channel", cut.get("channel"))
        if isinstance(channel, int) and _n_channels(cut) > 1:
            values["channel"] = channel
        row_id = name if len(supervisions) < 2 else f"{name}:{supervision.get('id', n)}"
        records.append(SourceRecord(values, where, audio, id=row_id))
    return records


def _is_whole(cut: _Json, start_s: float, duration_s: float) -> bool:
    recorded_s = (cut.get("recording") or {}).get("duration")
    return recorded_s is not None and start_s == 0.0 and abs(duration_s - float(recorded_s)) < 1e-3


def _n_channels(cut: _Json) -> int:
    return len(
        {channel for source in (cut.get("recording") or {}).get("sources", []) for channel in source["channels"]}
    )


def _audio(cut: _Json) -> tuple[str | bytes, str]:
    """Return the path of a cut's recording, or b"" and the reason why there is none."""
    kind, recording = cut.get("type", "MonoCut"), cast(_Json | None, cut.get("recording"))
    if kind not in ("MonoCut", "MultiCut", "Cut") or recording is None:
        description = kind if recording is not None or kind == "MixedCut" else "cut without a recording"
        return b"", f"no audio: a {description}, and cuts of recordings in files are needed"
    if recording.get("transforms"):
        return b"", "no audio: a recording with transforms, and cuts of recordings in files are needed"
    sources = cast(Sequence[_Json], recording["sources"])
    if len(sources) != 1 or sources[0]["type"] not in ("file", "url"):
        types = ", ".join(str(source["type"]) for source in sources)
        return b"", f"unreadable audio: a recording of {types}: one file is needed, and no command is run"
    return str(sources[0]["source"]), ""
