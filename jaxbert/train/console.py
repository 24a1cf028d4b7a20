"""Progress for a person: a progress bar on a terminal and in a notebook, plain lines anywhere else."""

import html
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO


class ConsoleTracker:
    """Shows step, loss, MLM and NSP accuracy, real tokens/s, share of time waiting for input, and time left.

    `stream` None: standard output, as it is when the tracker is made. `headline`: other measures to show, 0 to 1.
    """

    def __init__(
        self, num_steps: int, resume_step: int = 0, stream: TextIO | None = None, headline: Sequence[str] = ()
    ):
        self._headline = headline
        self._num_steps = num_steps
        self._first_step = resume_step
        self._started = time.monotonic()
        self._stream = sys.stdout if stream is None else stream
        self._bar: Any = None
        if self._stream.isatty():
            self._bar, self._task = _make_bar(self._stream, num_steps, resume_step)
        elif stream is None and _in_notebook():
            self._bar, self._task = _NotebookBar(num_steps, resume_step), None

    def log(self, step: int, metrics: Mapping[str, float], split: str = "train") -> None:
        """Show one line, or move the bar."""
        shown = _shown(metrics, self._headline)
        if split != "train":
            self._print(f"step {step:,} held-out  {shown}")
            return
        left = self._time_left(step)
        if self._bar is None:
            self._print(f"step {step:,}/{self._num_steps:,}  {shown}  left {left}")
        else:
            self._bar.update(self._task, completed=step, metrics=shown, left=left)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def _print(self, line: str) -> None:
        if self._bar is None or isinstance(self._bar, _NotebookBar):
            print(line, file=self._stream, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)

    def _time_left(self, step: int) -> str:
        done = step - self._first_step
        if done <= 0:
            return "?"
        seconds = round((time.monotonic() - self._started) / done * (self._num_steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _shown(metrics: Mapping[str, float], headline: Sequence[str]) -> str:
    """ "loss 6.123  mlm 12.3 %  ..." of the metrics that are there; losses that are not NSP's or the sum stay in the files."""
    forms = (
        ("loss", "loss {:.4f}", 1),
        ("mlm_accuracy", "mlm {:.1f} %", 100),
        ("nsp_accuracy", "nsp {:.1f} %", 100),
        *((name, name.replace("_", " ") + " {:.1f} %", 100) for name in headline),
        ("tokens_per_second", "{:,.0f} tokens/s", 1),
        ("input_wait_share", "input {:.1f} %", 100),
        ("mfu", "mfu {:.1f} %", 100),
    )
    parts = [form.format(metrics[name] * factor) for name, form, factor in forms if name in metrics]
    if metrics.get("nonfinite_steps"):
        parts.append(f"skipped {metrics['nonfinite_steps']:.0f}")
    return "  ".join(parts)


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, as in Colab; an IPython on a terminal is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class _NotebookBar:
    """A bar in a cell's output that is drawn anew in place. HTML's own: it needs no widgets, which not every notebook shows."""

    def __init__(self, num_steps: int, completed: int):
        from IPython.display import display

        self._num_steps = num_steps
        self._handle: Any = display(self._drawn(completed, "", "?"), display_id=True)

    def update(self, task: Any, *, completed: int, metrics: str, left: str) -> None:
        """Draw it anew."""
        self._handle.update(self._drawn(completed, metrics, left))

    def stop(self) -> None:
        """Leave it as it stands."""

    def _drawn(self, completed: int, metrics: str, left: str) -> Any:
        from IPython.display import HTML

        words = html.escape(f"step {completed:,}/{self._num_steps:,}  {metrics}  left {left}")
        return HTML(f"<progress value='{completed}' max='{self._num_steps}'></progress> {words}")


def _make_bar(stream: TextIO, num_steps: int, completed: int) -> tuple[Any, Any]:
    import rich.console
    import rich.progress

    bar = rich.progress.Progress(
        rich.progress.TextColumn("step"),
        rich.progress.MofNCompleteColumn(),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[metrics]}"),
        rich.progress.TextColumn("left {task.fields[left]}"),
        console=rich.console.Console(file=stream),
    )
    task = bar.add_task("train", total=num_steps, completed=completed, metrics="", left="?")
    bar.start()
    return bar, task
