from pathlib import Path

import pytest

from askd_ray.config.load import load_recipe
from askd_ray.errors import AskdError
from askd_ray.files import write_json
from askd_ray.runs import Run
from askd_ray.train.checkpoint import latest_train_state
from askd_ray.train.loop import CHECKPOINTS
from askd_ray.train.ray_trainer import clear_stale_run


def test_checkpoint_of_an_older_format_is_refused_and_removed_by_force(tmp_path: Path):
    run = Run(load_recipe("demo", [f"runs_root={tmp_path}", "name=old"]))
    state = run.distill / CHECKPOINTS / "step-00000007" / "state.json"
    state.parent.mkdir(parents=True)
    write_json(state, {"key": "k", "step": 7, "place": {"epoch": 0, "group": 0, "steps": 7}, "own": {}})
    with pytest.raises(AskdError, match=r"step-00000007 has format 1, .* resumes from format 4: --force starts"):
        latest_train_state(run.distill / CHECKPOINTS)
    with pytest.raises(AskdError, match="format 1"):
        clear_stale_run(run, "k", force=False)
    clear_stale_run(run, "k", force=True)
    assert not run.distill.exists()
