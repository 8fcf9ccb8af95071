"""Show people how far a suite is: one bar for all, one line per process, one printed line per finished task."""

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmark.runner import Outcome, Watcher
from benchmark.tasks import Task


def bars(console: Console) -> Progress:
    """Make a display of progress that moves on a terminal and is silent elsewhere."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class Display(Watcher):
    """A rich progress display; on a terminal it moves, in a log it leaves the printed lines alone."""

    def __init__(self, title: str, tasks: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.progress = bars(self.console)
        self.lines: dict[Task, TaskID] = {}
        self.fractions: dict[Task, float] = {}
        self.finished, self.tasks = 0, tasks
        self.whole = self.progress.add_task(title, total=tasks)

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def started(self, task: Task) -> None:
        """Give the task a line."""
        self.lines[task] = self.progress.add_task(f"  {task.label}", total=None)

    def progressed(self, task: Task, what: str, done: int, total: int) -> None:
        """Move the task's line, and the whole by its share."""
        if total:
            self.fractions[task] = done / total
            self.progress.update(self.lines[task], completed=done, total=total)
            self.progress.update(self.whole, completed=self.finished + sum(self.fractions.values()))
        self.progress.update(self.lines[task], description=f"  {task.label}: {what}")

    def ended(self, task: Task, outcome: Outcome) -> None:
        """Take the line away and print how the task ended."""
        line = self.lines.pop(task)
        seconds = self.progress.tasks[self.progress.task_ids.index(line)].elapsed or 0.0
        self.progress.remove_task(line)
        self.fractions.pop(task, None)
        self.finished += 1
        self.progress.update(self.whole, completed=self.finished + sum(self.fractions.values()))
        word = f"FAILED: {outcome.error}" if outcome.error else f"done in {seconds:.0f} s"
        self.console.out(f"[{self.finished}/{self.tasks}] {task.label}: {word}", highlight=False)
