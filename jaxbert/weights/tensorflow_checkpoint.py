"""Google's checkpoints (google-research/bert): bert_model.ckpt.*, bert_config.json, vocab.txt. TensorFlow is loaded here alone."""

import functools
import glob
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxbert.weights.assemble import Assembled, Request, Tensor, assemble
from jaxbert.weights.configuration import HfConfiguration, read_configuration, read_json, write_configuration
from jaxbert.weights.disassemble import exported
from jaxbert.weights.folder import CONFIG, GOOGLE_CONFIG, inside
from jaxbert.weights.names import WeightsError, shown, tensorflow_name
from jaxbert.weights.tree import GROUPS, Layout

_GOOGLE_KEYS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)
# Slots of Adam and LAMB (bert/optimization.py names adam_m and adam_v; tf.train's own are Adam and Adam_1), counters.
_NO_WEIGHT = re.compile(
    r".*/(adam_m|adam_v|lamb_m|lamb_v|Adam|Adam_1|LAMB|LAMB_1)"
    r"|(.*/)?(global_step|beta1_power|beta2_power|loss_scale|current_loss_scale|good_steps|bad_steps)"
)


def read_checkpoint_configuration(folder: pathlib.Path, scan_layers: bool = False) -> HfConfiguration:
    """The bert_config.json (or config.json) beside a checkpoint.

    "gelu" is read as the exact form: it is what the code that these checkpoints came with computed (run_pretraining's
    modeling.py of October 2018), and what Hugging Face's conversions of them compute.
    """
    names = [name for name in (GOOGLE_CONFIG, CONFIG) if (folder / name).exists()]
    if not names:
        raise WeightsError(f"{folder}: has no {GOOGLE_CONFIG}: put the one that came with the checkpoint there")
    path = inside(folder / names[0], folder)
    return read_configuration(read_json(path), str(path), scan_layers)


def read_checkpoint(prefix: pathlib.Path, layout: Layout, request: Request) -> Assembled:
    """The parameters in PREFIX.index and PREFIX.data-*; the optimizer's slots and counters are left.

    Raises WeightsError for damaged files, and as `assemble` does.
    """
    folder = prefix.parent
    inside(prefix.with_name(f"{prefix.name}.index"), folder)
    data = sorted(folder.glob(f"{glob.escape(prefix.name)}.data-*"))
    if not data:
        raise WeightsError(f"{prefix}: has an .index file and no .data-* file: get the checkpoint again")
    for path in data:
        inside(path, folder)
    reader, shapes = _open(prefix)
    names = {}
    for parameter in layout.parameters(group for group in GROUPS if group != "token"):
        if parameter.torch is not None:
            name, transposed = tensorflow_name(parameter)
            names[name] = (parameter.torch, transposed)
    tensors = {}
    for name, shape in shapes.items():
        if _NO_WEIGHT.fullmatch(name):
            continue
        torch, transposed = names.get(name, (name, False))
        shape = tuple(shape)
        read = functools.partial(_read, reader, prefix, name, transposed)
        tensors[torch] = Tensor(name, shape[::-1] if transposed else shape, read)
    return assemble(tensors, layout, request, str(prefix))


def write_checkpoint(prefix: pathlib.Path, params: Mapping[str, Any], layout: Layout, groups: Sequence[str]) -> None:
    """Writes PREFIX.index and PREFIX.data-* with the names of google-research/bert. Raises what `exported` does."""
    import tensorflow as tf

    named = {}
    for parameter, array in exported(params, layout, groups):
        name, transposed = tensorflow_name(parameter)
        named[name] = np.ascontiguousarray(array.T if transposed else array)
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=list(named), shape_and_slices=[""] * len(named), tensors=list(named.values())
    )


def google_configuration(layout: Layout) -> dict[str, Any]:
    """bert_config.json: the keys of google-research/bert's BertConfig (modeling.py)."""
    values = write_configuration(layout, "BertModel")
    return {key: values[key] for key in _GOOGLE_KEYS}


def _open(prefix: pathlib.Path) -> tuple[Any, dict[str, list[int]]]:
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(prefix))
        return reader, reader.get_variable_to_shape_map()
    except Exception as error:  # Errors of TensorFlow's, and RuntimeError and ValueError from its C++.
        raise _damaged(prefix, error) from None


def _read(reader: Any, prefix: pathlib.Path, name: str, transposed: bool) -> np.ndarray:
    try:
        array = np.asarray(reader.get_tensor(name))
    except Exception as error:  # As in _open.
        raise _damaged(prefix, error) from None
    if not np.issubdtype(array.dtype, np.floating):
        raise WeightsError(f"{prefix}: {shown(name)} is of the type {array.dtype}, and weights are floating-point")
    return array.T if transposed else array


def _damaged(prefix: pathlib.Path, error: Exception) -> WeightsError:
    return WeightsError(f"{prefix}: is damaged ({shown(str(error).splitlines()[0], 300)}): get the checkpoint again")
