"""Progress bars with rate and remaining time, with one style for all stages."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)


class Table(RichTable):
    """A table that wraps text that is too wide for the terminal; Rich would cut it off."""

    def add_column(self, header: RenderableType = "", *args: Any, **options: Any) -> None:
        """Add a column, as Rich does."""
        super().add_column(header, *args, **{"overflow": "fold", **options})


class _RateColumn(ProgressColumn):
    """Completed units per second."""

    def render(self, task: Task) -> Text:
        # Rich's speed is that of the last seconds; for a finished task, show the mean.
        rate = task.completed / task.elapsed if task.finished and task.elapsed else task.speed
        return Text(f"{rate:.1f} {task.fields['unit']}/s" if rate else "", style="cyan")


class _TwoLines(Progress):
    """A progress bar with a note on a separate line below it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", style="dim")


class Bar:
    """One progress bar with a note."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress, self._task = progress, task

    def advance(self, n: float = 1) -> None:
        """Add ``n`` completed units."""
        self._progress.advance(self._task, n)

    def update(self, completed: float, note: str = "", total: float | None = None) -> None:
        """Set the completed units, the note, and the total, if it is known."""
        self._progress.update(self._task, completed=completed, note=note, total=total)

    def note(self, note: str) -> None:
        """Set the note below the bar."""
        self._progress.update(self._task, note=note)


@contextmanager
def bar(description: str, total: float | None, unit: str = "it") -> Generator[Bar]:
    """Show a progress bar while the block runs. If the output is no terminal, print only the final state."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with _TwoLines(*columns, console=console, refresh_per_second=4) as progress:
        yield Bar(progress, progress.add_task(description, total=total, unit=unit, note=""))
