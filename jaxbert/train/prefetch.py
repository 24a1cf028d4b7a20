"""Batches brought onto the devices ahead of the step, by a thread that ends with the loop."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple

POLL_SECONDS = 0.1
END_SECONDS = 10.0


class Fetched(NamedTuple):
    """One batch, as the host made it and on the devices."""

    host: Any
    device: Any


class Prefetch:
    """At most `ahead` batches wait on the devices; an error in the thread is raised by `next`.

    A context manager: leaving it ends the thread.
    """

    def __init__(self, batches: Iterable[Any], put: Callable[[Any], Any], ahead: int):
        self.waited_seconds: float = 0.0
        """Time spent in `next`, since the start."""
        self._batches = batches
        self._put = put
        self._room = threading.Semaphore(ahead)
        self._ready: queue.SimpleQueue[Fetched | BaseException] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> "Prefetch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._room.release()
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            logging.warning("the input is stuck: its thread did not end within %d seconds", END_SECONDS)

    def next(self, should_stop: Callable[[], bool]) -> Fetched | None:
        """The next batch; None when `should_stop` says so before there is one.

        Raises what the thread raised; EOFError where the batches have ended.
        """
        started = time.perf_counter()
        try:
            while not should_stop():
                try:
                    fetched = self._ready.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
                if isinstance(fetched, BaseException):
                    raise fetched
                self._room.release()
                return fetched
            return None
        finally:
            self.waited_seconds += time.perf_counter() - started

    def _fill(self) -> None:
        try:
            self._room.acquire()
            for host in self._batches:
                self._ready.put(Fetched(host, self._put(host)))
                self._room.acquire()
                if self._ending.is_set():
                    return
            raise EOFError("the batches ended before the training did")
        except BaseException as error:
            self._ready.put(error)  # raised by `next`, in the thread that trains
        finally:
            # A generator's own clean-up belongs to the thread that ran it.
            close = getattr(self._batches, "close", None)
            if close is not None:
                close()
