"""Which settings decide a stage: two recipes that differ in them are told apart by key, all others are equal to it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.config.differences import DECIDES, copy_decided, differences, plain
from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe

CHANGES = {
    "prepare": ["data.dev_share=0.3", "data.sources=[{path: /other}]", "data.utterances_per_shard=3"],
    "label": ["teacher.model=wheel:base", "teacher.top_k=7", "targets.kind=pseudo"],
    "tune": ["tune.trials=77"],
    "distill": [
        "train.optimizer.lr=0.125",
        "train.epochs=9",
        "student.decoder_layers=[0]",
        "seed=5",
        "window.silence_s=0.9",
        "window.train_min_s=1.5",
    ],
    "export": ["window.choose_on_dev=false"],
    "evaluate": ["evaluate.stock=false"],
}
DECIDE_NOTHING = [
    "train.workers.count=3",
    "teacher.batch_size=3",
    "tracking.mlflow=/x",
    "name=other",
    "train.workers.gpu=true",
]


@settings(deadline=None)
@given(changes=st.sets(st.sampled_from(sorted(c for one in CHANGES.values() for c in one) + DECIDE_NOTHING)))
def test_each_change_is_named_by_the_stage_that_it_decides(changes: set[str]):
    recipe, changed = load_recipe("demo"), load_recipe("demo", sorted(changes))
    for stage in DECIDES:
        found = {difference.key for difference in differences(recipe, changed, stage)}
        assert found == {change.partition("=")[0] for change in changes & set(CHANGES[stage])}


@settings(deadline=None)
@given(stages=st.sets(st.sampled_from(sorted(DECIDES))))
def test_what_is_copied_differs_no_more(stages: set[str]):
    recipe = load_recipe("demo")
    changed = load_recipe("demo", [change for some in CHANGES.values() for change in some])
    values = plain(recipe)
    for stage in stages:
        copy_decided(plain(changed), values, stage)
    copied = Recipe.model_validate(values)
    assert {stage for stage in DECIDES if not differences(changed, copied, stage)} == stages


def test_one_folder_in_two_ways_and_credentials_are_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    one = load_recipe("demo", ["data.sources=[{path: speech}, {path: 's3://key:secret@bucket/x'}]"])
    other = load_recipe("demo", [f"data.sources=[{{path: {tmp_path}/speech}}, {{path: 's3://bucket/x'}}]"])
    assert differences(one, other, "prepare") == []


def test_a_line_names_the_sources_and_is_short():
    one, other = (load_recipe("demo", [f"data.sources=[{{path: {path}}}]"]) for path in ("/own", f"/{'x' * 300}"))
    (found,) = differences(one, other, "prepare")
    assert found.key == "data.sources" and "/own" in found.recorded_text and len(found.given_text) == 80


def test_every_section_of_a_recipe_decides_a_stage_or_is_known_to_decide_none():
    """A new section is to be thought about here."""
    deciding = {key.partition(".")[0] for keys in DECIDES.values() for key in keys}
    assert set(Recipe.model_fields) - deciding == {"name", "data_run", "runs_root", "data_root", "tracking", "study"}
