"""How the processes of a run wait for one another: in order, for as long as it takes, and for none that is gone."""

import pathlib
import socket
import subprocess
import sys

from jaxbert.train.processes import process_0_first

PROCESS = """
import os, pathlib, sys, time
number, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
os.environ["JAX_PLATFORMS"] = "cpu"
from jax.experimental import multihost_utils
from jaxbert.config import DistributedConfig, MeshConfig, UserError
from jaxbert.train.processes import barrier, initialize, process_0_first

def give_up(name):
    raise AssertionError("a collective of the devices gives up before the rows are there")

multihost_utils.sync_global_devices = give_up
initialize(MeshConfig(), DistributedConfig(True, f"localhost:{port}", 2, number))

def make():
    found = (folder / "rows").exists()
    time.sleep(0 if found else 2)
    (folder / "rows").touch()
    return found

# A name may come again, as in a fine-tuning with several seeds.
for first in (False, True):
    assert process_0_first(make, "jaxbert_test") == (first or number == 1)
    barrier("jaxbert_test_done")

for failing in (0, 1):
    def fail():
        if number == failing:
            raise UserError("no space left")
    try:
        process_0_first(fail, "jaxbert_test")
    except UserError as error:
        assert ("no space left" if number == failing else f"process {failing} of this run has stopped") in str(error)
    else:
        raise AssertionError("it went on")
"""


def test_one_process_waits_for_nobody():
    assert process_0_first(lambda: 3, "jaxbert_test") == 3


def test_the_others_wait_for_process_0_and_end_with_whichever_fails(tmp_path: pathlib.Path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", PROCESS]
    processes = [subprocess.Popen([*command, str(number), port, str(tmp_path)]) for number in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
