import json
from pathlib import Path

import pytest
from PIL import Image

from askd_ray.errors import AskdError
from askd_ray.train.plot import plot_runs


def a_run(folder: Path, rate: float) -> Path:
    lines = [
        {"step": i, "progress": i / 20, "a": 1 - i / 20, "ce": 2 * rate**i, "dev_wer": rate**i} for i in range(1, 21)
    ]
    for line in lines:
        if line["step"] % 5:
            del line["dev_wer"]
    (folder / "distill").mkdir(parents=True)
    (folder / "distill" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_are_drawn_in_one_plot(tmp_path: Path):
    runs = [a_run(tmp_path / "fast", 0.8), a_run(tmp_path / "slow", 0.95)]
    two, one = plot_runs(runs, tmp_path / "two.png"), plot_runs(runs[:1], tmp_path / "one.png")
    colours = [len(Image.open(path).convert("RGB").getcolors(1 << 16) or []) for path in (one, two)]
    assert colours[1] > colours[0] > 3


def test_folder_without_a_training_is_refused(tmp_path: Path):
    with pytest.raises(AskdError, match=r"holds no training: .*askd distill"):
        plot_runs([tmp_path], tmp_path / "runs.png")
    assert not (tmp_path / "runs.png").exists()
