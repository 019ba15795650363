"""The targets of derived clips, by real tiny.en."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_run import small_run
from tiny_run import Model

from askd_ray.config.schema import Recipe
from askd_ray.data.derive import derive
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import derived_paths, read_shard, read_utterances
from askd_ray.data.task_runner import LocalRunner
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label
from askd_ray.text.normalize import normalizer

DERIVE = {
    "crops": {"per_utterance": 3.0, "duration_s": [0.6, 2.0]},
    "stitched": {"per_utterance": 0.5, "duration_s": [8.0, 12.0]},
    "non_speech": {"per_utterance": 1.0},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, speech: Path, weights: Path) -> Run:
    settings = {"teacher": {"model": str(weights), "top_k": 4}, "data": {"derive": DERIVE}}
    run = small_run(tmp_path_factory.mktemp("runs"), speech, **settings)
    derive(run.shards, run.recipe.data.derive, LocalRunner(2))
    return run


def clips(run: Run, kind: str, split: str = "train") -> list[Utterance]:
    paths = derived_paths(run.shards, "dev" if split == "dev" else "train")
    return [u for path in paths for u in read_shard(path) if u.derived == kind]


def test_clip_without_speech_has_the_end_token_and_no_soft_labels(run: Run, tiny_en: Model):
    labels = label(*tiny_en, clips(run, "non_speech"), run.recipe)
    tokens = tiny_en[1]
    assert labels
    for made in labels:
        assert made.target_ids.tolist() == [tokens.end]
        assert not made.left_out
        assert not made.token_loss.any()


def test_teacher_writes_the_text_of_crops(run: Run, tiny_en: Model):
    crops = clips(run, "crop")
    labels = label(*tiny_en, crops, run.recipe)
    kept = [made for made in labels if not made.left_out]
    assert len(kept) > len(crops) // 3
    assert all(len(made.target_ids) > 1 and made.token_loss.any() for made in kept)


def test_stitched_clips_keep_their_references(run: Run, tiny_en: Model):
    tokens = tiny_en[1]
    stitched = clips(run, "stitched")
    for u, made in zip(stitched, label(*tiny_en, stitched, run.recipe), strict=True):
        assert tokens.decode(made.target_ids[:-1].tolist()).strip() == u.text


def test_crops_of_dev_get_a_part_of_the_reference(run: Run, tiny_en: Model):
    tokens, basic = tiny_en[1], normalizer("en", "basic")
    crops = clips(run, "crop", "dev")
    texts = {u.id: u.text for u in read_utterances(run.shards, "dev")}
    for u, made in zip(crops, label(*tiny_en, crops, run.recipe), strict=True):
        if not made.left_out:
            part = tokens.decode(made.target_ids[:-1].tolist()).strip()
            assert part and part in texts[u.id.partition("#")[0]]
            assert basic(part)
        assert not made.token_loss.any()  # dev needs a text only


def test_crops_are_written_as_the_other_targets_are(run: Run, tiny_en: Model):
    """Beside pseudo-labels, a crop that passes the check has the teacher's own writing."""
    tokens, basic = tiny_en[1], normalizer("en", "basic")
    pseudo = run.recipe.model_copy(update={"targets": run.recipe.targets.model_copy(update={"kind": "pseudo"})})
    crops = clips(run, "crop", "dev")
    made = {one.content_hash: one for one in label(*tiny_en, crops, run.recipe)}
    written = [(made[one.content_hash], one) for one in label(*tiny_en, crops, pseudo)]
    assert [a.left_out for a, _ in written] == [b.left_out for _, b in written]
    texts = [[tokens.decode(one.target_ids.tolist()) for one in pair] for pair in written if not pair[0].left_out]
    assert texts and all(basic(a) == basic(b) for a, b in texts)
    assert any(a != b for a, b in texts)  # " Please" and "please"


def test_crop_without_a_match_is_left_out(run: Run, tiny_en: Model):
    crop = next(u for u in clips(run, "crop") if u.duration_s > 1.0)
    (made,) = label(*tiny_en, [replace(crop, text="words of another clip")], run.recipe)
    assert made.left_out == "not a part of the reference"
    assert len(made.target_ids) == 0


def test_recipe_without_derived_clips_refuses_filters():
    values = {"data": {"derive": None}, "targets": {"beam_size": 3}}
    with pytest.raises(ValueError, match="the teacher transcribes nothing"):
        Recipe.model_validate(values)
    assert Recipe.model_validate({"targets": {"beam_size": 3}}).has_pseudo_labels
