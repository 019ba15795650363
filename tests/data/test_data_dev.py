from pathlib import Path

import pytest
from small_run import small_run
from tiny_run import Model

from askd_ray.config.derive import Derive
from askd_ray.data.derive import derive
from askd_ray.data.dev import read_dev
from askd_ray.data.labels import read_label_texts, write_labels
from askd_ray.data.shards import derived_paths, read_shard, read_utterances
from askd_ray.data.task_runner import LocalRunner
from askd_ray.errors import AskdError
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label, label_key


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, speech: Path, weights: Path, tiny_en: Model) -> Run:
    run = small_run(tmp_path_factory.mktemp("runs"), speech, teacher={"model": str(weights)})
    derive(run.shards, Derive(), LocalRunner(1))
    for path in derived_paths(run.shards, "dev"):
        write_labels(run.labels / path.name, label(*tiny_en, read_shard(path), run.recipe), label_key(run.recipe))
    return run


def test_dev_has_utterances_and_derived_clips_with_their_texts(run: Run):
    clips = read_dev(run.shards, run.labels, label_key(run.recipe))
    utterances = read_utterances(run.shards, "dev")
    assert clips[: len(utterances)] == utterances
    derived = clips[len(utterances) :]
    assert derived
    for clip in derived:
        assert bool(clip.text) == (clip.derived != "non_speech")
        assert clip.derived != "crop" or len(clip.text.split()) < 8  # a part, not the text of the whole utterance


def test_crops_without_a_reference_are_not_in_dev(run: Run):
    made = [u for path in derived_paths(run.shards, "dev") for u in read_shard(path)]
    texts = [t for path in derived_paths(run.shards, "dev") for t in read_label_texts(run.labels / path.name)]
    left_out = {u.id for u, text in zip(made, texts, strict=True) if text is None}
    kept = {u.id for u in read_dev(run.shards, run.labels, {}) if u.derived}
    assert kept == {u.id for u in made} - left_out


def test_stale_labels_are_refused(run: Run):
    with pytest.raises(AskdError, match="stale soft labels"):
        read_dev(run.shards, run.labels, {"teacher": "another"})
    with pytest.raises(AskdError, match="run `askd label` first"):
        read_dev(run.shards, run.labels / "nowhere", {})
