"""The processes of a run: what jax settles once in each, and how they wait and speak together."""

import os

import jax
from jax.experimental import multihost_utils

from jaxbert.config import DistributedConfig, MeshConfig, UserError


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
    """Return once every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def say(text: str) -> None:
    """Print a line, in process 0 alone."""
    if jax.process_index() == 0:
        print(text, flush=True)


def describe_devices() -> str:
    """The devices of all processes, in words."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
