"""Checkpoints that can be trusted: Orbax writes them, a sha256 of every file says whether they are still what was written.

    WORKDIR/checkpoints/<step>/              what Orbax wrote
    WORKDIR/checkpoints_sha256/<step>.json   the record: every file's size and sha256, and what the host knew at that step
    WORKDIR/checkpoints_rejected/            checkpoints that did not match their record, set aside for a look

A checkpoint counts only if its record is there and every file matches it; otherwise the one before it serves. Orbax by
itself restores bit-flipped arrays without an error, and takes an empty folder for the latest step.
In a run of several processes all of them call the same methods in the same order, and WORKDIR is one that all of them see.
"""

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from jaxbert.config import CheckpointConfig, UserError
from jaxbert.train.checkpoint_record import (
    CHECKPOINTS,
    RECORDS,
    Record,
    fault,
    file_digests,
    format_record,
    parse_record,
)

PyTree = Any
NO_STEP, NONE_IS_WHOLE = -1, -2


class CheckpointError(UserError):
    """A checkpoint that could not be written, or does not fit; its text is one line."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A checkpoint that was passed over."""

    step: int
    reason: str


class Checkpoints:
    """The checkpoints of a run: saved in the background, the newest few and the best one kept.

    `highest`: the held-out measure whose highest value is the best one. None: the best one has the lowest loss.
    `phase_starts`: the first steps of the run's phases. Two of them have rows of two lengths, whose losses do not compare.
    A save that fails in the background raises `CheckpointError` at the next `save`, `wait` or `close`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        config: CheckpointConfig,
        highest: str | None = None,
        phase_starts: Sequence[int] = (0,),
    ):
        root = epath.Path(workdir).resolve()
        self._directory = root / CHECKPOINTS
        self._records = root / RECORDS
        self._rejected = root / "checkpoints_rejected"
        self._config = config
        self._measure, self._sign = ("loss", 1) if highest is None else (highest, -1)
        self._phase_starts = tuple(phase_starts)
        self._sealing: _Sealing | None = None
        self.skipped: tuple[Skipped, ...] = ()
        """What the last `restore_latest` passed over, newest first (known to process 0)."""
        if jax.process_index() == 0:
            self._records.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            # Orbax keeps all; what to delete is decided here. It would delete the checkpoint before as soon as the new
            # one is committed, which is before its hashes are written.
            max_to_keep=None,
            cleanup_tmp_directories=True,
            # Reading metadata of a damaged step must not fail here, before it is verified.
            lightweight_initialize=True,
            save_root_metadata=False,
        )
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint and its record, in order. Their content is not verified."""
        return sorted(_numbers(self._directory, "") & _numbers(self._records, ".json"))

    def record(self, step: int) -> Record | None:
        """The record of a step; None where there is no readable one."""
        try:
            return parse_record((self._records / f"{step}.json").read_bytes())
        except (OSError, ValueError):
            return None

    def best_step(self) -> int | None:
        """The step with the best held-out evaluation (of equal ones the newest); None where none was evaluated.

        Ranked are those of the last phase that has any: it is the one that the model is trained for in the end.
        """
        records = [record for step in self.steps() if (record := self.record(step))]
        found = [(record.measure(self._measure), record.step) for record in records]
        ranked = [(-self._phase_of(step), self._sign * value, -step) for value, step in found if value is not None]
        return -min(ranked)[2] if ranked else None

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        evaluation: Mapping[str, float] | None = None,
        window: Mapping[str, Any] | None = None,
    ) -> None:
        """Start to write `state`, and return once it may be donated; a step that is saved already is left as it is.

        `evaluation` (held-out metrics, "loss" among them) is also added to a step that was saved without one.
        """
        self.wait()
        if step in self.steps():
            self._attach(step, evaluation)
            return
        self._prune()
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
        except Exception as error:
            raise CheckpointError(f"the checkpoint of step {step} was not saved: {_one_line(error)}") from error
        self._sealing = _Sealing(self._seal, Record(step, {}, evaluation, window))
        self._sealing.start()

    def wait(self) -> None:
        """Return once the save that is under way is committed and has its record."""
        sealing, self._sealing = self._sealing, None
        if sealing is None:
            return
        sealing.join()
        try:
            self._manager.wait_until_finished()
            if sealing.error is not None:
                raise sealing.error
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint of step {sealing.record.step} was not saved: {_one_line(error)}"
            ) from error
        _barrier("jaxbert_checkpoint_sealed")

    def close(self) -> None:
        """Wait for the save that is under way, delete what need not be kept, end all threads."""
        try:
            self.wait()
            self._prune()
        finally:
            self._manager.close()

    def restore_latest(self, abstract_state: PyTree) -> PyTree | None:
        """The state of the newest checkpoint that is whole, or None where there is none.

        `abstract_state`: arrays or `jax.ShapeDtypeStruct`s with the shardings to restore to, which need not be those it
        was saved with. Checkpoints that are not whole are warned of, listed in `skipped`, and set aside.
        Raises CheckpointError where the checkpoint is one of another model, and where there are several and none is whole.
        """
        self.wait()
        chosen, skipped = NO_STEP, []
        if jax.process_index() == 0:
            for step in sorted(_numbers(self._directory, ""), reverse=True):
                if (reason := fault(self._directory.parent, step)) is None:
                    chosen = step
                    break
                skipped.append(Skipped(step, reason))
            # One may be a first save that was cut off; several were a run, which must not begin again by itself.
            if chosen == NO_STEP and len(skipped) > 1:
                chosen = NONE_IS_WHOLE
            for step, reason in ((s.step, s.reason) for s in skipped if chosen != NONE_IS_WHOLE):
                logging.warning(
                    "checkpoint %d is skipped: %s (moved to %s)", step, reason, self._set_aside(step).as_posix()
                )
            for step in _numbers(self._records, ".json") - _numbers(self._directory, ""):
                (self._records / f"{step}.json").unlink()
        self.skipped = tuple(skipped)
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if chosen == NONE_IS_WHOLE:
            first = f": the newest, {skipped[0].step}: {skipped[0].reason}" if skipped else ""
            raise CheckpointError(
                f"none of the checkpoints in {self._directory} is whole{first}; bring {self._records.name} back beside it, "
                "or remove both to start again"
            )
        self._manager.reload()
        return None if chosen == NO_STEP else self._read(chosen, abstract_state)

    def restore(self, step: int, abstract_state: PyTree) -> PyTree:
        """The state of one step, as in `restore_latest`. Raises CheckpointError where it is not whole."""
        self.wait()
        reason = fault(self._directory.parent, step)
        if reason is not None:
            raise CheckpointError(f"checkpoint {step} cannot be restored: {reason}")
        return self._read(step, abstract_state)

    def _phase_of(self, step: int) -> int:
        """The phase that a checkpoint's last step was in, by number; it was evaluated on that one's rows."""
        return sum(start < step for start in self._phase_starts)

    def _read(self, step: int, abstract_state: PyTree) -> PyTree:
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), abstract_state
        )
        stored = _types(self._manager.item_metadata(step).tree)
        wanted = _types(abstract)
        # The parameters first: the optimizer's moments only repeat what is wrong with them.
        for name in sorted(stored.keys() | wanted.keys(), key=lambda name: (not name.startswith("params"), name)):
            if stored.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"checkpoint {step} is of another model: {name} is {stored.get(name, 'missing')} there and "
                    f"{wanted.get(name, 'missing')} in this one; use the configuration that it was trained with, "
                    "or another workdir"
                )
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def _seal(self, record: Record) -> None:
        """Wait for Orbax to commit the step, then write its record."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            files = file_digests(self._directory / f"{record.step}")
            self._write_record(dataclasses.replace(record, files=files))

    def _attach(self, step: int, evaluation: Mapping[str, float] | None) -> None:
        record = self.record(step)
        if evaluation is not None and record is not None and record.evaluation is None and jax.process_index() == 0:
            self._write_record(dataclasses.replace(record, evaluation=evaluation))

    def _write_record(self, record: Record) -> None:
        path = self._records / f"{record.step}.json"
        partial = self._records / f"{record.step}.json.partial"
        partial.write_text(format_record(record))
        partial.replace(path)

    def _set_aside(self, step: int) -> epath.Path:
        self._rejected.mkdir(parents=True, exist_ok=True)
        taken = {path.name for path in self._rejected.iterdir()}
        names = (f"{step}" if number == 0 else f"{step}-{number}" for number in range(len(taken) + 1))
        target = self._rejected / next(name for name in names if name not in taken)
        (self._directory / f"{step}").rename(target)
        (self._records / f"{step}.json").unlink(missing_ok=True)
        return target

    def _prune(self) -> None:
        """Delete all but the newest few and the best. Only called while no save is under way."""
        if jax.process_index() == 0:
            steps = self.steps()
            best = self.best_step() if self._config.keep_best else None
            keep = {*steps[-self._config.keep_last :], best}
            for step in set(steps) - keep:
                # The record goes first: half a checkpoint must not look like one.
                (self._records / f"{step}.json").unlink()
                (self._directory / f"{step}").rmtree()
        _barrier("jaxbert_checkpoint_pruned")
        self._manager.reload()


class _Sealing(threading.Thread):
    """Waits in the background for one save, then writes its record."""

    def __init__(self, seal: Callable[[Record], None], record: Record):
        super().__init__(name=f"seal_checkpoint_{record.step}")
        self.record = record
        self.error: Exception | None = None
        self._seal = seal

    def run(self) -> None:
        try:
            self._seal(self.record)
        except Exception as error:
            self.error = error  # raised by Checkpoints.wait, in the thread that trains


def _numbers(directory: epath.Path, suffix: str) -> set[int]:
    names = (path.name for path in directory.iterdir() if path.name.endswith(suffix)) if directory.exists() else ()
    return {int(stem) for name in names if (stem := name.removesuffix(suffix)).isdigit()}


def _types(tree: PyTree) -> dict[str, str]:
    """ "params.layer.kernel" -> "float32[4, 3]", for every leaf that is an array."""
    leaves = ocp.tree.to_flat_dict(tree)
    return {
        ".".join(map(str, path)): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in leaves.items()
        if hasattr(leaf, "shape")
    }


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
