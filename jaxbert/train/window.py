"""The training metrics between two log lines, and the time that their steps took."""

import time
from collections.abc import Mapping
from typing import Any

from jaxbert.train.evaluate import Totals


class Window:
    """Adds up the metrics of steps until `line` divides them and starts anew.

    `saved`: what `to_json` gave when the state was saved. The sums go on from there, so that the first line of a resumed run
    is the one that the uninterrupted run logs; times start anew.
    """

    def __init__(
        self,
        loss_weights: Mapping[str, float],
        *,
        nonfinite_steps: int = 0,
        nonfinite_in_a_row: int = 0,
        saved: Mapping[str, Any] | None = None,
    ):
        self.nonfinite_steps: int = nonfinite_steps
        """Skipped steps of the whole run."""
        self.nonfinite_in_a_row: int = nonfinite_in_a_row
        self._loss_weights = loss_weights
        self._totals = Totals(saved["sums"] if saved else None)
        self._learning_rate: float | None = saved["learning_rate"] if saved else None
        self._restart_times()
        self._mark: float | None = None
        self._waited_mark = 0.0

    def add(self, metrics: Mapping[str, Any], waited_seconds: float) -> None:
        """Add the metrics of one step, read from the device just now: pairs are (sum, weight), scalars belong to the step.

        A step that was skipped adds to no mean. `waited_seconds`: time spent waiting for input since the start of the run.
        """
        pairs = {name: (value[0], value[1]) for name, value in metrics.items() if isinstance(value, tuple | list)}
        self._learning_rate = float(metrics["learning_rate"])
        if metrics["nonfinite"]:
            self.nonfinite_steps += 1
            self.nonfinite_in_a_row += 1
        else:
            self.nonfinite_in_a_row = 0
            self._totals.add({**pairs, "grad_norm": (metrics["grad_norm"], 1)})
        now = time.perf_counter()
        # The first step compiles, so its time says nothing: the clock starts at its end.
        if self._mark is not None:
            self._seconds += now - self._mark
            self._waited += waited_seconds - self._waited_mark
            self._tokens += int(metrics["tokens"])
        self._mark, self._waited_mark = now, waited_seconds

    def restart_clock(self, waited_seconds: float) -> None:
        """Leave out the time since the last step: the host evaluated or saved."""
        if self._mark is not None:
            self._mark, self._waited_mark = time.perf_counter(), waited_seconds

    def line(self) -> dict[str, float]:
        """The means since the last line; times are left out where none was measured."""
        line = self._totals.means(self._loss_weights)
        if self._learning_rate is not None:
            line["learning_rate"] = self._learning_rate
        line["nonfinite_steps"] = float(self.nonfinite_steps)
        if self._seconds > 0:
            line["tokens_per_second"] = self._tokens / self._seconds
            line["input_wait_share"] = self._waited / self._seconds
        self._totals = Totals()
        self._restart_times()
        return line

    def to_json(self) -> dict[str, Any]:
        """What a resumed run needs to go on in the middle of a line."""
        return {"sums": dict(self._totals.values), "learning_rate": self._learning_rate}

    def _restart_times(self) -> None:
        self._seconds, self._waited, self._tokens = 0.0, 0.0, 0
