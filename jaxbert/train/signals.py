"""SIGTERM and SIGINT as a wish to stop, which the loop grants after saving a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """Notes SIGTERM and SIGINT while it is entered, in the main thread; a second SIGINT raises KeyboardInterrupt.

    In a run of several processes SIGTERM is left to JAX's preemption service, which tells all processes of it and finds a
    point that none of them has passed; SIGINT keeps its usual meaning there.
    """

    def __init__(self):
        self.requested: bool = False
        """A signal has come to this process."""
        self._previous: dict[signal.Signals, Any] = {}
        self._interrupts = 0
        self._point = 0

    def __enter__(self) -> "StopSignals":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether to stop here: the same answer in all processes, which must ask at the same points of their run."""
        if jax.process_count() == 1:
            return self.requested
        self._point += 1
        return multihost_utils.reached_preemption_sync_point(self._point)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.requested = True
