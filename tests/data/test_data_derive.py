import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from small_run import small_run

from askd_ray.audio.decode import decode
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.config.derive import Crops, Derive, NonSpeechClips, Stitched
from askd_ray.data.derive import NON_SPEECH_DOMAIN, derive
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import (
    derived_paths,
    read_shard,
    read_utterances,
    shard_paths,
    to_table,
    waveform_of,
    write_table,
)
from askd_ray.data.task_runner import LocalRunner
from askd_ray.location import Location

WIDTH = SAMPLE_RATE_HZ // 10
SETTINGS = Derive(
    crops=Crops(per_utterance=2.0, duration_s=(0.3, 1.0)),
    stitched=Stitched(per_utterance=0.5, duration_s=(6.0, 12.0), pause_s=(0.2, 0.2)),
    non_speech=NonSpeechClips(per_utterance=1.0, duration_s=(0.3, 2.0)),
)


@pytest.fixture
def shards(tmp_path, speech) -> Location:
    return small_run(tmp_path, speech).shards


def derived(folder: Location, split="train") -> list[Utterance]:
    return [u for path in derived_paths(folder, split) for u in read_shard(path)]


def test_counts_add_up_and_clips_repeat(shards):
    counts = derive(shards, SETTINGS, LocalRunner(2))
    clips = derived(shards)
    for kind in ("crop", "stitched", "non_speech"):
        assert counts["train"][kind] == sum(u.derived == kind for u in clips) > 0
    assert len({u.id for u in clips}) == len(clips)
    hashes = [u.content_hash for u in clips]
    assert derive(shards, SETTINGS, LocalRunner(2)) == counts
    assert [u.content_hash for u in derived(shards)] == hashes
    assert len(set(hashes)) == len(hashes)


def test_stored_hash_and_duration_are_those_of_the_clip(shards):
    derive(shards, SETTINGS, LocalRunner(2))
    for u in derived(shards):
        assert len(waveform_of(u)) == pytest.approx(u.duration_s * SAMPLE_RATE_HZ, abs=2 * len(u.pieces))
        assert u.duration_s <= 30.0


def test_crops_are_parts_of_their_utterance(shards):
    derive(shards, SETTINGS, LocalRunner(2))
    whole = {u.id: u for u in read_utterances(shards, "train")}
    crops = [u for u in derived(shards) if u.derived == "crop"]
    for u in crops:
        source = whole[u.id.partition("#")[0]]
        (piece,) = u.pieces
        assert (u.speaker, u.language, u.domain, u.split) == (source.speaker, source.language, source.domain, "train")
        assert 0.3 <= u.duration_s <= 1.0
        assert u.text == ""  # the teacher writes it
        start = round(piece.start_s * SAMPLE_RATE_HZ)
        crop, fade = waveform_of(u), SAMPLE_RATE_HZ // 100
        expected = decode(source.audio)[start : start + len(crop)]
        np.testing.assert_array_equal(crop[fade:-fade], expected[fade:-fade])
        assert abs(crop[0]) == abs(crop[-1]) == 0.0


def test_crops_with_references_end_at_quiet_points(shards):
    settings = Derive(
        crops=Crops(per_utterance=3.0, duration_s=(0.4, 1.0), text="reference"),
        stitched=Stitched(per_utterance=0),
        non_speech=NonSpeechClips(per_utterance=0),
        dev=False,
    )
    assert derive(shards, settings, LocalRunner(2)).keys() == {"train"}
    texts = {u.id: u.text for u in read_utterances(shards, "train")}
    crops = derived(shards)
    assert crops
    at_cuts, anywhere = list[float](), list[float]()
    for u in crops:
        assert u.text == texts[u.id.partition("#")[0]]
        (piece,) = u.pieces
        waveform, start = decode(piece.audio), round(piece.start_s * SAMPLE_RATE_HZ)
        if start:
            at_cuts.append(float(np.square(waveform[start - WIDTH // 2 : start + WIDTH // 2]).mean()))
            anywhere.append(float(np.square(waveform).mean()))
    assert sum(at_cuts) < 0.5 * sum(anywhere)


def test_stitched_clips_join_whole_utterances(shards):
    derive(shards, SETTINGS, LocalRunner(2))
    by_audio = {u.audio: u for u in read_utterances(shards, "train")}
    stitched = [u for u in derived(shards) if u.derived == "stitched"]
    for u in stitched:
        parts = [by_audio[piece.audio] for piece in u.pieces]
        assert len(parts) > 1
        assert u.text == " ".join(part.text for part in parts)
        assert u.duration_s == pytest.approx(sum(p.duration_s for p in parts) + 0.2 * (len(parts) - 1))
        assert u.duration_s <= 12.0
        assert len({part.id for part in parts}) == len(parts)


def test_clips_without_speech_have_none(shards, vad):
    (path,) = shard_paths(shards, "train")
    first, second, *others = read_shard(path)
    floor = 0.001 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE_HZ).astype(np.float32)
    file = io.BytesIO()
    with_pause = np.concatenate([waveform_of(first), floor, waveform_of(second)])
    soundfile.write(file, with_pause, SAMPLE_RATE_HZ, format="FLAC")
    long = replace(first, id="long", audio=file.getvalue(), duration_s=len(with_pause) / SAMPLE_RATE_HZ)
    write_table(path, to_table([long, *others]))
    derive(shards, SETTINGS.model_copy(update={"non_speech": NonSpeechClips(per_utterance=10.0)}), LocalRunner(2))
    silent = [u for u in derived(shards) if u.derived == "non_speech"]
    assert {u.text for u in silent} == {""}
    assert {u.domain for u in silent} == {NON_SPEECH_DOMAIN}
    stored = {u.audio for u in read_shard(path)}
    pauses = [u for u in silent if u.pieces[0].audio in stored]
    assert 0 < len(pauses) < len(silent)
    assert {u.pieces[0].gain_db > 0.0 for u in pauses} == {True, False}  # some are as loud as a street
    for u in pauses:
        assert np.mean(vad.probs(waveform_of(u)) > 0.5) < 0.2


def test_dev_gets_short_long_and_silent_clips(shards):
    derive(shards, SETTINGS, LocalRunner(2))
    kinds = {u.derived for u in derived(shards, "dev")}
    assert kinds <= {"crop", "stitched", "non_speech"}
    assert "crop" in kinds
    assert all(u.duration_s <= 1.4 for u in derived(shards, "dev") if u.derived == "crop")
    assert derived_paths(shards, "test") == []


def test_shards_of_a_split_leave_derived_clips_out(shards):
    n = len(read_utterances(shards, "train"))
    derive(shards, SETTINGS, LocalRunner(2))
    assert len(read_utterances(shards, "train")) == n
    assert all(not path.name.startswith("derived") for path in shard_paths(shards, "train"))
