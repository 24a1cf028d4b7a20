"""The processes of a run: what jax settles once in each, and how they wait and speak together."""

import os
from collections.abc import Callable
from typing import TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxbert.config import DistributedConfig, MeshConfig, UserError

T = TypeVar("T")
# A large corpus is prepared in hours.
LONGEST_WAIT_HOURS = 7 * 24


def initialize(mesh: MeshConfig, distributed: DistributedConfig) -> None:
    """Settle what jax settles once in a process, unless the caller already did. Raises UserError where no cluster is found."""
    flags = os.environ.get("XLA_FLAGS", "")
    if mesh.cpu_devices > 1 and "xla_force_host_platform_device_count" not in flags:
        try:
            jax.config.update("jax_num_cpu_devices", mesh.cpu_devices)
        except RuntimeError:
            say(f"mesh.cpu_devices ({mesh.cpu_devices}) comes too late: this process has used jax already")
    if distributed.initialize and not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(
                distributed.coordinator_address, distributed.num_processes, distributed.process_id
            )
        except ValueError as error:
            raise UserError(
                f"distributed.initialize: {error}: no cluster that jax knows tells it; set distributed.coordinator_address, "
                "distributed.num_processes and distributed.process_id"
            ) from error


def barrier(name: str) -> None:
    """Return once every process has come here.

    They wait for jax's coordination service: a collective of the devices gives up after a time of its own (gloo's after 30 seconds).
    """
    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=LONGEST_WAIT_HOURS * 3_600_000)


def process_0_first(make: Callable[[], T], name: str) -> T:
    """What `make` returns, in every process: it is called in process 0, then in the others, however long that takes.

    So they find what it has made where they share its files; where they do not, each makes the same again.
    Raises in every process what `make` raises in one of them, or UserError, so that none waits for a process that is gone.
    """
    if jax.process_count() == 1:
        return make()
    made: T | None = None
    for turn, mine in enumerate((jax.process_index() == 0, jax.process_index() != 0)):
        failure: BaseException | None = None
        try:
            made = make() if mine else made
        except BaseException as error:
            failure = error
        barrier(f"{name}_{turn}")
        failed = np.flatnonzero(multihost_utils.process_allgather(np.array(failure is not None)))
        if failure is not None:
            raise failure
        if failed.size:
            raise UserError(
                f"process {failed[0]} of this run has stopped, and says why: mend that, and start all of them again"
            )
    return cast(T, made)


def say(text: str) -> None:
    """Print a line, in process 0 alone."""
    if jax.process_index() == 0:
        print(text, flush=True)


def describe_devices() -> str:
    """The devices of all processes, in words."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
