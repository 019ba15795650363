"""The best student of a run: its scores since the last shrinking, and the folder with its weights."""

from pathlib import Path

from askd_ray.files import remove
from askd_ray.models.student import StudentKind, StudentModel
from askd_ray.train.checkpoint import TrainState
from askd_ray.train.checkpoint_store import CheckpointStore

BEST = "best"


class BestStudent:
    """The student with the lowest dev score since the last shrinking (:func:`~askd_ray.train.dev.dev_score`).

    During the run the name of its folder has its step, so that each checkpoint finds the student that was the best.
    """

    def __init__(self, folder: Path, student_kind: StudentKind, train_state: TrainState, store: CheckpointStore):
        self._folder, self._student_kind, self._shrunk = folder, student_kind, train_state.shrunk
        self._store = store
        self.score, self.wer = train_state.best_score, train_state.best_wer
        self.step, self.no_better = train_state.best_step, train_state.no_better

    @property
    def path(self) -> Path:
        """The folder of the best student during the run."""
        return self._folder / f"{BEST}-step-{self.step or 0:08d}"

    def receive(self, score: float, wer: float, step: int) -> bool:
        """Receive the dev score and WER after a step; return whether the score is the lowest so far."""
        better = self.score is None or score < self.score
        if better:
            self.score, self.wer, self.step = score, wer, step
        self.no_better = 0 if better else self.no_better + 1
        return better

    def restart(self, shrunk: int) -> None:
        """Forget the best student after a shrinking: it has more layers than the recipe asks for."""
        self.score, self.wer, self.step, self.no_better, self._shrunk = None, None, None, 0, shrunk

    def save(self, student: StudentModel) -> None:
        """Write the best student."""
        self._student_kind.save(student, self.path)

    def load(self) -> StudentModel | None:
        """Return the best student, on the CPU; None before the first evaluation. All ranks call it together."""
        if self.step is None:
            return None
        self._store.share(self.path)
        return self._student_kind.load(self.path, self._shrunk)

    def remove_others(self) -> None:
        """Remove the folders of earlier best students, and half-written folders of a killed process."""
        for student in self._folder.glob(f"*{BEST}-step-*"):
            if student != self.path:
                remove(student)

    def finish(self) -> None:
        """At the end of the run, give the folder its final name, once no upload reads it."""
        self._store.wait()
        if self.path.is_dir():
            remove(self._folder / BEST)
            self.path.rename(self._folder / BEST)
