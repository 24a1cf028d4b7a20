"""A jaxbert run in: its configuration, and the parameters of its newest checkpoint that is whole. Changes nothing there."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from jaxbert import command_line
from jaxbert.config import Config, ConfigError, ModelConfig
from jaxbert.train.checkpoint_record import CHECKPOINTS, RECORDS, fault
from jaxbert.weights.assemble import Assembled, Request
from jaxbert.weights.configuration import check_run_model, read_json
from jaxbert.weights.folder import CONFIG, inside
from jaxbert.weights.names import WeightsError, shown
from jaxbert.weights.tree import GROUPS, Layout, Params, from_tree, initialised, to_tree, tree_shapes

EXPORTED = "model"
"""The Hugging Face folder that a finished run has in its own."""
# The groups of BertForPreTraining, which is what a run trains.
_PRETRAINED = ("encoder", "pooler", "mlm", "nsp")


def exported(folder: pathlib.Path) -> pathlib.Path:
    """The model that a run of fine-tuning exported, or the best one of several seeds or of a search; any other folder is itself.

    Raises WeightsError where that is not there yet.
    """
    file = folder / CONFIG
    if not file.is_file():
        return folder
    config = read_json(inside(file, folder)).get("config")
    if not isinstance(config, dict) or "task" not in config:
        return folder
    report = folder / "report.json"
    several = config.get("search") is not None or config.get("seeds", 1) != 1
    best = read_json(inside(report, folder)).get("model") if several and report.is_file() else None
    model = folder / (best if isinstance(best, str) else EXPORTED)
    if not model.is_dir() or not model.resolve().is_relative_to(folder.resolve()):
        raise WeightsError(f"{folder}: is a fine-tuning run that is not finished: let the same command go on")
    return model


def read_run_config(folder: pathlib.Path) -> Config:
    """What the run was run with. Raises WeightsError where its config.json does not say it whole, or no model has its sizes."""
    path = folder / CONFIG
    try:
        config = command_line.load(path)
    except ConfigError as error:
        raise WeightsError(f"{shown(str(error), 600)}: take the {CONFIG} that the run wrote") from None
    if config.model.vocab_size is None:
        raise WeightsError(f"{path}: does not say model.vocab_size: take the {CONFIG} that the run wrote")
    check_run_model(config.model, str(path))
    return config


def read_run(folder: pathlib.Path, model: ModelConfig, scan_layers: bool, request: Request) -> tuple[Assembled, int]:
    """The parameters of a run and their step, layers as `scan_layers` says. `model` is the run's.

    A checkpoint counts if its files match their sha256; a damaged one is passed over for the one before it.
    Raises WeightsError where none is whole, or where it is one of another model.
    """
    step = _newest_whole(folder)
    params = _restore(folder, step, model)
    heads = tuple(params) if request.heads is None else ("encoder", *request.heads)
    new = [name for name in request.fresh if name not in params]
    unknown = [name for name in new if name not in GROUPS]
    if unknown:
        raise WeightsError(f"there is no head {unknown[0]!r}: there are {', '.join(GROUPS[1:])}")
    absent = [name for name in heads if name not in params and name not in new]
    if absent:
        raise WeightsError(
            f"{folder}: has no head {absent[0]!r}: it has {', '.join(params)}; fresh={(absent[0],)} starts with a new one"
        )
    arrays = from_tree({name: tree for name, tree in params.items() if name in (*heads, *request.fresh)}, model)
    made = {p.path: initialised(p, model, request.seed) for p in Layout(model).parameters(new)}
    tree = to_tree(arrays | made, dataclasses.replace(model, scan_layers=scan_layers))
    return Assembled(tree, tuple(made)), step


def run_tokenizer(folder: pathlib.Path, config: Config) -> pathlib.Path | None:
    """The tokenizer folder of the run's rows. None where they are elsewhere, or where it is not said which ones they are."""
    roots = [folder / "rows"] + ([pathlib.Path(config.data.rows)] if config.data.rows else [])
    found = [path.parent for root in roots for path in sorted(root.glob("*/tokenizer/tokenizer.json"))]
    # Rows lie in a folder that has the beginning of their fingerprint for a name.
    fingerprint = read_json(folder / CONFIG).get("rows")
    if isinstance(fingerprint, str):
        found = [path for path in found if fingerprint.startswith(path.parent.name)]
    return found[0] if len(found) == 1 else None


def _newest_whole(folder: pathlib.Path) -> int:
    steps = sorted((int(p.stem) for p in (folder / RECORDS).glob("*.json") if p.stem.isdigit()), reverse=True)
    faults = []
    for step in steps:
        reason = fault(epath.Path(folder), step)
        if reason is None:
            return step
        faults.append(f"{step}: {reason}")
    raise WeightsError(
        f"{folder}: has no checkpoint that is whole ({'; '.join(faults[:3]) or 'none is there'}): train on, or restore the folder"
    )


def _restore(folder: pathlib.Path, step: int, model: ModelConfig) -> Params:
    """The parameters alone, as numpy arrays; the optimizer's moments are not read."""
    # From the table of names: to trace the model itself takes a minute where its configuration claims hundreds of layers.
    shapes = tree_shapes(Layout(model), _PRETRAINED)
    leaves = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    abstract = {"params": traverse_util.unflatten_dict(leaves, sep="/")}
    path = epath.Path(folder.resolve() / CHECKPOINTS / f"{step}" / "default")
    with _without_note_on_metadata(), ocp.PyTreeCheckpointer() as checkpointer:
        _check_same_model(checkpointer.metadata(path).item_metadata.tree["params"], shapes, folder, step)
        restored = checkpointer.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=abstract,
                restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract),
                partial_restore=True,
            ),
        )
    return restored["params"]


@contextlib.contextmanager
def _without_note_on_metadata() -> Iterator[None]:
    """Orbax warns that a checkpoint has no metadata of the user's, which the loop's have no use for."""
    logger = logging.getLogger("absl")

    def keep(record: logging.LogRecord) -> bool:
        return "Metadata file does not exist" not in str(record.msg)

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _check_same_model(
    stored: Mapping[str, Any], here: Mapping[str, tuple[int, ...]], folder: pathlib.Path, step: int
) -> None:
    leaves: dict[str, Any] = traverse_util.flatten_dict(dict(stored), sep="/")
    there = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    for path in sorted(there.keys() | here.keys()):
        if there.get(path) != here.get(path):
            raise WeightsError(
                f"{folder}: in checkpoint {step}, {shown(path)} is {there.get(path, 'missing')} and by {CONFIG} "
                f"{here.get(path, 'missing')}: take the {CONFIG} that the run wrote"
            )
