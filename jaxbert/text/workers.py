"""Local processes that work on units.

A worker is a fresh interpreter that reads pickled units from its standard input and answers on its standard output. It
ends when its input does, so none outlives the coordinator, however that ends; its death is seen at once and names the unit.
multiprocessing would import the caller's main module (and with it JAX) in every worker.
"""

import contextlib
import os
import pathlib
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from jaxbert.config import UserError
from jaxbert.text.rows import RowsError
from jaxbert.text.units import Unit, UnitSettings, run_unit

_SERVE = "from jaxbert.text.workers import serve; serve()"


def run_units(
    units: Iterable[Unit], settings: UnitSettings, folder: pathlib.Path, workers: int, on_done: Callable[[Unit], None]
) -> None:
    """Work on units in `workers` processes (1: in this one) and save the results in the folder.

    At most workers + 1 units are held at a time. RowsError names the unit whose work failed; what was saved stays.
    """
    if workers == 1:
        for unit in units:
            try:
                run_unit(unit, settings, folder)
            except UserError:
                raise
            except Exception as error:
                raise _failed(unit, f"{type(error).__name__}: {error}") from error
            on_done(unit)
        return
    with _Workers(workers, settings, folder) as pool:
        running: dict[Future[None], Unit] = {}
        for unit in units:
            running[pool.submit(unit)] = unit
            if len(running) > workers:
                _collect(running, on_done)
        while running:
            _collect(running, on_done)


def _collect(running: dict[Future[None], Unit], on_done: Callable[[Unit], None]) -> None:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        unit = running.pop(future)
        future.result()
        on_done(unit)


def _failed(unit: Unit, reason: str) -> RowsError:
    reason = " ".join(reason.split())[:300]
    return RowsError(f"unit {unit.index} of the {unit.split} documents failed: {reason}; run again to go on from there")


class _Workers:
    """A thread for each worker process hands it one unit at a time; processes start when there is work for them."""

    def __init__(self, count: int, settings: UnitSettings, folder: pathlib.Path):
        self._first_message = pickle.dumps((settings, folder))
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="prepare")
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._all: list[subprocess.Popen[bytes]] = []
        self._closed = False
        self._starting = threading.Lock()

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._starting:
            self._closed = True
        if kind is not None:
            for process in self._all:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            assert process.stdin
            assert process.stdout
            # One that died with a unit in its pipe was reported.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
            process.stdout.close()

    def submit(self, unit: Unit) -> Future[None]:
        return self._threads.submit(self._run, unit)

    def _run(self, unit: Unit) -> None:
        try:
            process, first_message = self._idle.get_nowait(), b""
        except queue.Empty:
            process, first_message = self._start(), self._first_message
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(first_message)
            pickle.dump(unit, process.stdin)
            process.stdin.flush()
            error: UserError | str | None = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as death:
            reason = f"its process ended with code {process.wait()}"
            raise _failed(unit, f"{reason} (-9 is often a lack of memory)") from death
        self._idle.put(process)
        if isinstance(error, UserError):
            raise error
        if error is not None:
            raise _failed(unit, error)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
        with self._starting:
            if self._closed:
                raise RuntimeError("closed")
            process = subprocess.Popen(
                [sys.executable, "-c", _SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                # An interrupt from the keyboard reaches the coordinator alone, which then ends the workers.
                process_group=0,
            )
            self._all.append(process)
        return process


def serve() -> None:
    """The worker's side: settings and folder first, then units; answers None, a UserError, or another error's text."""
    answers = os.fdopen(os.dup(1), "wb")
    # What a library prints must not come between the answers.
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    settings, folder = pickle.load(requests)
    while True:
        try:
            unit = pickle.load(requests)
        except EOFError:
            return
        answer: UserError | str | None = None
        try:
            run_unit(unit, settings, folder)
        except UserError as error:
            answer = error
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()
