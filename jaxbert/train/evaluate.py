"""Metrics as sums and weights: added up over steps or batches, divided once at the end."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax


class Totals:
    """(sum, weight) of each metric, added up in the host's float64."""

    def __init__(self, values: Mapping[str, tuple[float, float]] | None = None):
        self.values: dict[str, tuple[float, float]] = {
            name: (total, weight) for name, (total, weight) in (values or {}).items()
        }

    def add(self, sums: Mapping[str, tuple[Any, Any]]) -> None:
        """Add one step's or batch's sums: scalars on the host."""
        for name, (added, by) in sums.items():
            total, weight = self.values.get(name, (0.0, 0.0))
            self.values[name] = (total + float(added), weight + float(by))

    def means(self, loss_weights: Mapping[str, float]) -> dict[str, float]:
        """Sum over weight of each metric, and "loss": the loss terms' means, each times its coefficient, added.

        A metric whose weight is 0 (no batch had a target for it) is left out.
        """
        means = {name: total / weight for name, (total, weight) in self.values.items() if weight > 0}
        terms = [factor * means[name] for name, factor in loss_weights.items() if factor and name in means]
        return {"loss": sum(terms), **means} if terms else means


def evaluate(
    eval_step: Callable[[Any, Any], Mapping[str, tuple[Any, Any]]],
    state: Any,
    batches: Iterable[Any],
    put: Callable[[Any], Any],
    *,
    loss_weights: Mapping[str, float],
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Means of every metric over all batches, and "loss"; None when `should_stop` said so between two batches.

    `eval_step(state, device_batch)` gives (sum, weight) by name. `put` brings a host batch onto the devices.
    """
    totals = Totals()
    running = None
    for batch in batches:
        if should_stop():
            return None
        # The sums of one batch are read while the next one runs.
        previous, running = running, eval_step(state, put(batch))
        if previous is not None:
            totals.add(jax.device_get(previous))
    if running is not None:
        totals.add(jax.device_get(running))
    return totals.means(loss_weights)
