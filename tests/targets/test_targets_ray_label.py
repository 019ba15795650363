"""The stage `label` with real parts: unlabelled real clips, real tiny.en, real Ray."""

import json
from pathlib import Path

import pytest
from small_run import manifest_rows, write_manifest

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import read_labels
from askd_ray.data.prepare import prepare
from askd_ray.data.shards import shard_paths
from askd_ray.errors import AskdError
from askd_ray.runs import Run
from askd_ray.targets.kl_report import REPORTED_KS
from askd_ray.targets.ray_label import label

pytestmark = pytest.mark.slow

N_CLIPS = 6


@pytest.fixture(scope="module")
def clips(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest: three real prompts without text, two with the right text, and one with a wrong text."""
    rows = manifest_rows(speech)[::80][:N_CLIPS]
    texts = ["", "", "", rows[3]["text"], rows[4]["text"], "these words are of another prompt"]
    rows = [{**row, "text": text} for row, text in zip(rows, texts, strict=True)]
    return write_manifest(tmp_path_factory.mktemp("data") / "clips", speech, rows)


def a_recipe(clips: Path, root: Path, **sections: object) -> Recipe:
    shares = {"dev_share": 0.0, "test_share": 0.0}
    # One text is another clip's: the WER filter drops it; its length fits the clip.
    data = {"sources": [{"path": str(clips)}], **shares, "utterances_per_shard": 4}
    data |= {"chars_per_s": None, "derive": None}
    return Recipe.model_validate(
        {"name": "pseudo", "runs_root": str(root), "data": data, "targets": {"kind": "pseudo"}, **sections}
    )


@pytest.mark.full
def test_pseudo_labels_from_unlabelled_clips(
    clips: Path, tmp_path: Path, weights: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
):
    recipe = a_recipe(clips, tmp_path)
    run = Run(recipe)
    prepared = prepare(recipe)
    assert (prepared["utterances"]["train"], prepared["without_text"]) == (N_CLIPS, 3)
    result = label(recipe)
    assert result["utterances"] == N_CLIPS == result["labelled"] + sum(result["left_out"].values())
    assert result["left_out"]["max_wer"] >= 1 and result["labelled"] >= 2
    made = [m for s in shard_paths(run.shards, "train") for m in read_labels(run.labels / s.name, 32)]
    assert sum(1 for m in made if not m.left_out) == result["labelled"]
    assert sum(len(m.target_ids) for m in made) == result["tokens"]
    losses = [loss for m in made for loss in m.token_loss.astype(float)]
    assert result["teacher_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)
    assert result["bytes_per_token"] == 4 * 32 + 4
    assert 0.0 < result["kl_lost"] and 0.0 < result["kl_lost_share"] < 1.0
    out = capsys.readouterr().out
    assert "max_wer" in out and "KL lost" in out and all(str(k) in out for k in REPORTED_KS)

    label(recipe)
    assert "finished already" in capsys.readouterr().out
    short = a_recipe(clips, tmp_path, targets={"kind": "pseudo", "chars_per_s": [0.0, 0.01]})
    again = label(short)  # the labels are stale now and are made again
    assert again["left_out"]["chars_per_s"] == 3 and again["labelled"] == result["labelled"] - 3


@pytest.mark.full
def test_all_utterances_left_out_is_an_error(clips: Path, tmp_path: Path, weights: Path, ray_session: None):
    lines = [json.loads(line) for line in (clips / "manifest.jsonl").read_text().splitlines()]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps({**line, "text": ""}) + "\n" for line in lines[:2]))
    recipe = a_recipe(tmp_path, tmp_path, targets={"kind": "pseudo", "chars_per_s": [0.0, 0.01]})
    prepare(recipe)
    with pytest.raises(AskdError, match=r"label: all 2 utterances are left out \(2 chars_per_s\)"):
        label(recipe)
