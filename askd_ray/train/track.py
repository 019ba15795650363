"""What a run tells while it goes: TensorBoard, and a JSON line a step that the progress bar reads."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

_METRICS = "metrics.jsonl"

Metrics = dict[str, float]


class Tracker:
    """Writes the metrics of rank 0 into a folder; a resumed run drops what it wrote after its checkpoint."""

    def __init__(self, folder: Path, resumed_at: int):
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(folder) if line["step"] <= resumed_at] if resumed_at else []
        self._lines = (folder / _METRICS).open("w", encoding="utf-8")
        for line in kept:
            self._write(line)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def log(self, step: int, metrics: Metrics) -> None:
        """Write the metrics of a step."""
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._write({"step": step, **metrics})

    def _write(self, line: Metrics) -> None:
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()

    def close(self) -> None:
        """Flush and close."""
        self._board.close()
        self._lines.close()


def read_metrics(folder: Path) -> list[Metrics]:
    """Return the metrics written so far, by step; a line that is still being written is left out."""
    path = folder / _METRICS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]
