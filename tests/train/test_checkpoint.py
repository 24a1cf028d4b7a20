"""Checkpoints: what counts as one, what is kept, and what happens to those that were damaged."""

import contextlib
import functools
import gc
import json
import logging
import pathlib
import resource
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxbert.config import CheckpointConfig
from jaxbert.train.checkpoint import CheckpointError, Checkpoints

CONFIG = CheckpointConfig(every=1, keep_last=3, keep_best=True)
INIT_ADAM = jax.jit(optax.adam(1e-3).init)


@flax.struct.dataclass
class State:
    """A small state of the same make as the real one."""

    step: jax.Array
    params: dict
    opt_state: tuple


def sharding(devices: int) -> tuple[NamedSharding, NamedSharding]:
    """(replicated, rows in parts) over so many devices."""
    mesh = jax.make_mesh((devices,), ("fsdp",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("fsdp"))


def make_state(step: int, devices: int = 1, width: int = 16) -> State:
    replicated, parts = sharding(devices)
    params = {
        "kernel": jax.device_put(jax.random.normal(jax.random.key(step), (8, width)), parts),
        "bias": jax.device_put(jnp.full((7,), step, jnp.float32), replicated),
    }
    return State(jax.device_put(jnp.int32(step), replicated), params, INIT_ADAM(params))


def assert_same(found: State | None, expected: State) -> None:
    assert found is not None
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, expected)


def save_steps(workdir: pathlib.Path, steps: list[int], config: CheckpointConfig = CONFIG) -> None:
    with Checkpoints(workdir, config) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step))


def files_of(step_directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in step_directory.rglob("*") if path.is_file() and path.stat().st_size)


def flip_a_bit(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_saved_state_comes_back_and_no_state_is_none(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.restore_latest(make_state(0)) is None
        checkpoints.save(4, make_state(4), evaluation={"loss": 2.5}, window={"sums": {"mlm_loss": (0.1, 3.0)}})
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert_same(checkpoints.restore_latest(make_state(0)), make_state(4))
        record = checkpoints.record(4)
        assert record is not None
        assert record.evaluation == {"loss": 2.5}
        assert record.window == {"sums": {"mlm_loss": [0.1, 3.0]}}
        assert checkpoints.skipped == ()


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1)])
def test_restores_onto_other_devices(tmp_path, before, after):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(4, make_state(4, devices=before))
        found = checkpoints.restore_latest(make_state(0, devices=after))
    assert_same(found, make_state(4))
    assert found.params["kernel"].sharding == sharding(after)[1]


def test_donating_the_state_at_once_does_not_change_what_is_saved(tmp_path):
    expected = jax.device_get(make_state(4, width=100_000))
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        state = make_state(4, width=100_000)
        checkpoints.save(4, state)
        # Where the writer still reads the arrays, jax copies instead of reusing them; where it does not, they are gone.
        overwritten = jax.block_until_ready(overwrite(state))
        assert np.all(np.asarray(overwritten.params["kernel"]) == -1)
        found = checkpoints.restore_latest(make_state(0, width=100_000))
    assert_same(found, expected)


def test_a_flipped_bit_in_any_file_passes_to_the_one_before(tmp_path, caplog):
    save_steps(tmp_path / "whole", [4, 8])
    names = [path.relative_to(tmp_path / "whole") for path in files_of(tmp_path / "whole" / "checkpoints" / "8")]
    names.append(pathlib.Path("checkpoints_sha256/8.json"))
    assert {name.name for name in names} >= {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "_sharding"}
    for number, name in enumerate(names):
        workdir = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "whole", workdir)
        flip_a_bit(workdir / name)
        caplog.clear()
        with Checkpoints(workdir, CONFIG) as checkpoints:
            assert_same(checkpoints.restore_latest(make_state(0)), make_state(4))
            assert [skipped.step for skipped in checkpoints.skipped] == [8]
            assert name.name in checkpoints.skipped[0].reason
        assert "checkpoint 8 is skipped" in caplog.text


def _truncate(workdir: pathlib.Path) -> None:
    path = max(files_of(workdir / "checkpoints" / "8"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


def _remove_a_file(workdir: pathlib.Path) -> None:
    files_of(workdir / "checkpoints" / "8")[-1].unlink()


def _empty(workdir: pathlib.Path) -> None:
    shutil.rmtree(workdir / "checkpoints" / "8")
    (workdir / "checkpoints" / "8").mkdir()


def _only_empty(workdir: pathlib.Path) -> None:
    _empty(workdir)
    (workdir / "checkpoints_sha256" / "8.json").unlink()


def _unsealed(workdir: pathlib.Path) -> None:
    (workdir / "checkpoints_sha256" / "8.json").unlink()


def _half_a_record(workdir: pathlib.Path) -> None:
    path = workdir / "checkpoints_sha256" / "8.json"
    path.write_bytes(path.read_bytes()[:40])


DAMAGE = {
    "truncated": (_truncate, "bytes instead of"),
    "file_removed": (_remove_a_file, "is missing"),
    "emptied": (_empty, "is missing"),
    "empty_folder": (_only_empty, "its save was never finished"),
    "no_record": (_unsealed, "its save was never finished"),
    "half_a_record": (_half_a_record, "8.json is damaged"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_passes_to_the_one_before_and_can_be_saved_again(tmp_path, damage, reason):
    save_steps(tmp_path, [4, 8])
    damage(tmp_path)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert_same(checkpoints.restore_latest(make_state(0)), make_state(4))
        assert reason in checkpoints.skipped[0].reason
        assert (tmp_path / "checkpoints_rejected" / "8").is_dir()
        # The step comes round again, and once more is refused after it was damaged a second time.
        checkpoints.save(8, make_state(8))
        assert_same(checkpoints.restore_latest(make_state(0)), make_state(8))
        damage(tmp_path)
        assert_same(checkpoints.restore_latest(make_state(0)), make_state(4))
        assert (tmp_path / "checkpoints_rejected" / "8-1").is_dir()


def test_nothing_whole_is_none_and_restoring_a_damaged_step_by_number_raises(tmp_path):
    save_steps(tmp_path, [8])
    _truncate(tmp_path)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        with pytest.raises(CheckpointError, match=r"checkpoint 8 cannot be restored: .* bytes instead of"):
            checkpoints.restore(8, make_state(0))
        assert checkpoints.restore_latest(make_state(0)) is None
        assert len(checkpoints.skipped) == 1


def test_several_checkpoints_of_which_none_is_whole_do_not_start_the_run_again(tmp_path):
    save_steps(tmp_path, [4, 8])
    shutil.rmtree(tmp_path / "checkpoints_sha256")
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* is whole: the newest, 8: .*bring"):
            checkpoints.restore_latest(make_state(0))
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]


def test_stale_records_and_remains_of_a_save_are_removed(tmp_path):
    save_steps(tmp_path, [4])
    shutil.copy(tmp_path / "checkpoints_sha256" / "4.json", tmp_path / "checkpoints_sha256" / "9.json")
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert_same(checkpoints.restore_latest(make_state(0)), make_state(4))
        checkpoints.save(5, make_state(5))
    assert sorted(path.name for path in (tmp_path / "checkpoints_sha256").iterdir()) == ["4.json", "5.json"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "5"]


LOSSES = {1: 3.0, 2: 1.0, 3: None, 4: 1.5, 5: float("nan"), 6: None, 7: 2.0}


@pytest.mark.parametrize(("keep_best", "kept"), [(True, [2, 6, 7]), (False, [6, 7])])
def test_keeps_the_last_and_the_best(tmp_path, keep_best, kept):
    config = CheckpointConfig(every=1, keep_last=2, keep_best=keep_best)
    with Checkpoints(tmp_path, config) as checkpoints:
        for step, loss in LOSSES.items():
            checkpoints.save(step, make_state(step), evaluation=None if loss is None else {"loss": loss})
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == kept
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.steps() == kept
        assert checkpoints.best_step() == (2 if keep_best else 7)
        assert_same(checkpoints.restore(kept[0], make_state(0)), make_state(kept[0]))


ACCURACIES = {1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: float("nan"), 6: 0.8, 7: 0.7}


def test_keeps_the_highest_of_a_measure_and_of_equal_ones_the_newest(tmp_path):
    config = CheckpointConfig(every=1, keep_last=1, keep_best=True)
    with Checkpoints(tmp_path, config, highest="accuracy") as checkpoints:
        for step, accuracy in ACCURACIES.items():
            # The loss says the contrary, and has no say.
            evaluation = None if accuracy is None else {"loss": accuracy, "accuracy": accuracy}
            checkpoints.save(step, make_state(step), evaluation=evaluation)
    with Checkpoints(tmp_path, config, highest="accuracy") as checkpoints:
        assert checkpoints.steps() == [4, 7]
        assert checkpoints.best_step() == 4
    with Checkpoints(tmp_path, config, highest="f1") as checkpoints:
        assert checkpoints.best_step() is None


def test_the_best_is_one_of_the_last_phase_that_was_evaluated(tmp_path):
    config = CheckpointConfig(every=1, keep_last=1, keep_best=True)
    # Rows of 512 tokens are easier to predict in than those of 128, or harder: the switch is after step 4.
    losses = {2: 1.0, 4: 0.9, 5: None, 6: 2.0, 7: 3.0}
    kept = {}
    with Checkpoints(tmp_path, config, phase_starts=(0, 4)) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, make_state(step), evaluation=None if loss is None else {"loss": loss})
            checkpoints.wait()
            kept[step] = checkpoints.best_step()
    # The last evaluation before the switch is of the first phase, and counts until there is one of the second.
    assert kept == {2: 2, 4: 4, 5: 4, 6: 6, 7: 6}
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [6, 7]


def test_the_one_before_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=1, keep_best=False))
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    monkeypatch.setattr(checkpoints, "_write_record", _raise_no_space)
    checkpoints.save(2, make_state(2))
    with pytest.raises(CheckpointError, match="checkpoint of step 2 was not saved: OSError: no space"):
        checkpoints.close()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert_same(checkpoints.restore_latest(make_state(0)), make_state(1))


def _raise_no_space(record):
    raise OSError("no space")


def test_an_evaluation_can_be_added_to_a_step_that_is_saved(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(4, make_state(4))
        assert checkpoints.best_step() is None
        checkpoints.save(4, make_state(5), evaluation={"loss": 2.0})
        assert checkpoints.best_step() == 4
        assert_same(checkpoints.restore_latest(make_state(0)), make_state(4))


@contextlib.contextmanager
def _file_size_limit(limit: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Orbax leaves event loops of a failed save to the garbage collector, which complains of them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("then", ["save", "wait", "close"])
def test_a_save_that_fails_in_the_background_raises_later(tmp_path, then, caplog):
    caplog.set_level(logging.CRITICAL)
    checkpoints = Checkpoints(tmp_path, CONFIG)
    checkpoints.save(4, make_state(4))
    checkpoints.wait()
    wide, narrow = make_state(8, width=100_000), make_state(9)
    # Files beyond this size cannot be written, as on a full disk.
    with _file_size_limit(100_000):
        checkpoints.save(8, wide)
        calls = {
            "save": functools.partial(checkpoints.save, 9, narrow),
            "wait": checkpoints.wait,
            "close": checkpoints.close,
        }
        with pytest.raises(CheckpointError, match=r"the checkpoint of step 8 was not saved: [^\n]*$"):
            calls[then]()
    checkpoints.close()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert_same(checkpoints.restore_latest(make_state(0)), make_state(4))
    del checkpoints
    # Here, and not in whichever test comes later.
    gc.collect()


def test_a_checkpoint_of_another_model_names_the_parameter_and_both_shapes(tmp_path):
    save_steps(tmp_path, [4])
    state = make_state(0)
    extra = state.replace(params={**state.params, "extra": jnp.zeros(3)})
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore_latest(make_state(0, width=24))
        assert "checkpoint 4 is of another model" in str(error.value)
        assert "params.kernel is float32[8, 16] there and float32[8, 24] in this one" in str(error.value)
        assert "\n" not in str(error.value)
        with pytest.raises(CheckpointError, match=r"params.extra is missing there and float32\[3\] in this one"):
            checkpoints.restore_latest(extra)
        # It is whole, so it stays.
        assert_same(checkpoints.restore_latest(make_state(0)), make_state(4))


def test_the_record_lists_every_file_with_its_hash(tmp_path):
    save_steps(tmp_path, [4])
    record = json.loads((tmp_path / "checkpoints_sha256" / "4.json").read_text())
    directory = tmp_path / "checkpoints" / "4"
    assert sorted(record["files"]) == sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )
    assert not list((tmp_path / "checkpoints_sha256").glob("*.partial"))
