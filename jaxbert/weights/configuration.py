"""A Hugging Face config.json -> ModelConfig and back; keys that change the computation are known or refused, others kept.

Defaults in `OPTIONAL` are those of transformers' configuration classes, which old files leave out.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, get_args

from jaxbert.config import ModelConfig
from jaxbert.weights.names import Family, WeightsError, shown
from jaxbert.weights.tree import Layout

FAMILIES: tuple[Family, ...] = get_args(Family)
# Ours -> the key in config.json.
_BERT_KEYS: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "activation": "hidden_act",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
_DISTILBERT_KEYS: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_position_embeddings": "max_position_embeddings",
    "activation": "activation",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
}
KEYS: Mapping[Family, Mapping[str, str]] = {
    "bert": _BERT_KEYS,
    "roberta": _BERT_KEYS,
    "xlm-roberta": _BERT_KEYS,
    "distilbert": _DISTILBERT_KEYS,
    "electra": _BERT_KEYS | {"embedding_size": "embedding_size"},
}
OPTIONAL: Mapping[str, Any] = {
    "activation": "gelu",
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "layer_norm_epsilon": 1e-12,
    "initializer_range": 0.02,
}
# modeling_distilbert.py builds its LayerNorms with this epsilon and has no token types.
_FIXED: Mapping[Family, Mapping[str, Any]] = {"distilbert": {"layer_norm_epsilon": 1e-12, "type_vocab_size": 0}}
# The MLM heads in modeling_roberta.py, modeling_xlm_roberta.py and modeling_electra.py do not look at hidden_act.
_MLM_ACTIVATION: Mapping[Family, str] = dict.fromkeys(("roberta", "xlm-roberta", "electra"), "gelu")
# Values by which a model of a run has no such part.
_WITHOUT: Mapping[str, Any] = {"embedding_size": None, "type_vocab_size": 0}

# transformers' names; all tanh forms are one formula (transformers/activations.py).
_ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"),
    "relu": "relu",
}
_ACTIVATION_OUT = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}

# Keys that change what is computed, with the values under which nothing changes.
_UNCHANGED: Mapping[str, tuple[Any, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}, []),
    "quantization_config": (None,),
    "auto_map": (None,),
}
# The same of ELECTRA's multiple choice (modeling_electra.py, ElectraSequenceSummary).
_UNCHANGED_CHOICE: Mapping[str, tuple[Any, ...]] = {
    "summary_type": (None, "first"),
    "summary_use_proj": (None, True),
    "summary_activation": ("gelu",),
}
_TIED = "tie_word_embeddings"
# What other configurations of ours say, and a file would contradict.
_OWN = ("architectures", "dtype", "torch_dtype", "model_type", "transformers_version", _TIED)

# The class without its family's name -> the groups that it holds beside the encoder; "": the encoder's own class.
_CLASSES: Mapping[Family, Mapping[str, tuple[str, ...]]] = {
    "bert": {
        "ForPreTraining": ("pooler", "mlm", "nsp"),
        "ForSequenceClassification": ("pooler", "sequence"),
        "ForNextSentencePrediction": ("pooler", "nsp"),
        "ForMultipleChoice": ("pooler", "choice"),
        "Model": ("pooler",),
    },
    "roberta": {"ForMultipleChoice": ("pooler", "choice"), "Model": ("pooler",)},
    "xlm-roberta": {"ForMultipleChoice": ("pooler", "choice"), "Model": ("pooler",)},
    "distilbert": {},
    "electra": {"ForPreTraining": ("discriminator",)},
}
_EVERY_FAMILY = {
    "ForMaskedLM": ("mlm",),
    "ForSequenceClassification": ("sequence",),
    "ForTokenClassification": ("token",),
    "ForQuestionAnswering": ("span",),
    "ForRelationClassification": ("relation",),
    "ForMultipleChoice": ("choice",),
    "Model": (),
}
CLASS_PREFIX: Mapping[Family, str] = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
}
ARCHITECTURES: Mapping[str, tuple[Family, tuple[str, ...]]] = {
    CLASS_PREFIX[family] + name: (family, groups)
    for family in FAMILIES
    for name, groups in (_EVERY_FAMILY | _CLASSES[family]).items()
}
"""transformers' class -> its family, and the groups that it holds beside the encoder."""

MOST_TEXT_BYTES = 64_000_000
"""A larger file is no configuration and no vocabulary."""
_LARGEST_SIZE = 2**31 - 1
# A name is made for every parameter of every layer, before the file is known to have them.
_MOST_LAYERS = 1024


@dataclasses.dataclass(frozen=True)
class HfConfiguration:
    """What a config.json says."""

    layout: Layout
    architecture: str | None
    """The class that it names, where it is one of ARCHITECTURES."""
    extra: Mapping[str, Any]
    """Keys that the model has no use for, for an export."""


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
    """The object (or the list, as `kind` says) in a JSON file. Raises WeightsError, naming the file, for anything else."""
    try:
        if path.stat().st_size > MOST_TEXT_BYTES:
            raise WeightsError(f"{path}: {path.stat().st_size} bytes are no configuration: get the file again")
        values = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}: get the file again") from None
    except (ValueError, RecursionError) as error:
        text = str(error).splitlines()[0]
        raise WeightsError(f"{path}: is not JSON ({text}): get the file again") from None
    if not isinstance(values, kind):
        raise WeightsError(f"{path}: holds no JSON {'object' if kind is dict else kind.__name__}: get the file again")
    return values


def read_configuration(values: Mapping[str, Any], source: str, scan_layers: bool = False) -> HfConfiguration:
    """The model that a config.json describes. `source` names the file in errors.

    Raises WeightsError for sizes that are missing or impossible, and for keys that change the computation to one that the
    model does not have.
    """
    family, architecture = _family(values, source)
    fixed = dict(_UNCHANGED)
    if architecture == "ElectraForMultipleChoice":
        fixed |= _UNCHANGED_CHOICE
    for key, unchanged in fixed.items():
        if values.get(key, unchanged[-1]) not in unchanged:
            raise WeightsError(
                f"{source}: {key} {shown(repr(values[key]))} is another computation than this encoder's: "
                f"only {unchanged[-1]!r} can be loaded"
            )
    fields: dict[str, Any] = dict(_FIXED.get(family, {}))
    for field, key in KEYS[family].items():
        if key not in values and field not in OPTIONAL:
            raise WeightsError(f"{source}: {key} is missing: take the config.json that belongs to the weights")
        fields[field] = _value(field, key, values.get(key, OPTIONAL.get(field)), source)
    if _MLM_ACTIVATION.get(family, fields["activation"]) != fields["activation"]:
        fields["mlm_activation"] = _MLM_ACTIVATION[family]
    _check_heads(fields, KEYS[family], source)
    fields[_TIED] = values.get(_TIED, True)
    if not isinstance(fields[_TIED], bool):
        raise WeightsError(f"{source}: {_TIED} {shown(repr(fields[_TIED]))} is neither true nor false: correct it")
    if fields.get("embedding_size") == fields["hidden_size"]:
        fields["embedding_size"] = None
    unused = 0
    if family in ("roberta", "xlm-roberta"):
        # modeling_roberta.py, create_position_ids_from_input_ids: the first token's position is padding_idx + 1.
        unused = _value("pad_token_id", "pad_token_id", values.get("pad_token_id", 1), source) + 1
        if unused >= fields["max_position_embeddings"]:
            raise WeightsError(
                f"{source}: max_position_embeddings leaves no position behind pad_token_id {unused - 1}: take the config.json that belongs to the weights"
            )
        fields["max_position_embeddings"] -= unused
    groups = ARCHITECTURES[architecture][1] if architecture else ()
    # Encoders are often stored without the pooler that their class would have.
    required = tuple(group for group in groups if group != "pooler")
    known = {*KEYS[family].values(), *_OWN}
    return HfConfiguration(
        Layout(ModelConfig(scan_layers=scan_layers, **fields), family, _labels(values, source), unused, required),
        architecture,
        {key: value for key, value in values.items() if key not in known},
    )


def check_run_model(model: ModelConfig, source: str) -> None:
    """Refuses a run's model whose sizes or rates a config.json could not have either, before anything is made of them.

    `source` names the file in errors. Raises WeightsError.
    """
    fields = dataclasses.asdict(model)
    names = {field: f"model.{field}" for field in (*KEYS["electra"], "pad_vocab_to")}
    for field, name in names.items():
        if field != "activation" and (field not in _WITHOUT or fields[field] != _WITHOUT[field]):
            _value(field, name, fields[field], source)
    _check_heads(fields, names, source)


def write_configuration(layout: Layout, architecture: str, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json for `transformers`' class `architecture`. Raises WeightsError where the class is of another family."""
    config, family = layout.config, layout.family
    if ARCHITECTURES.get(architecture, (None,))[0] != family:
        names = [name for name, (its_family, _) in ARCHITECTURES.items() if its_family == family]
        raise WeightsError(f"architecture {architecture!r} is none of {family}'s: choose one of {', '.join(names)}")
    values = dict(extra or {})
    for field, key in KEYS[family].items():
        values[key] = getattr(config, field)
    values[KEYS[family]["activation"]] = _ACTIVATION_OUT[config.activation]
    if family == "electra":
        values["embedding_size"] = config.embedding_width
    values["max_position_embeddings"] += layout.unused_positions
    if layout.unused_positions:
        values["pad_token_id"] = layout.unused_positions - 1
    own = {"architectures": [architecture], "model_type": family, "dtype": "float32", _TIED: config.tie_word_embeddings}
    fixed = {field: getattr(config, field) for field in _FIXED.get(family, {})}
    if fixed != dict(_FIXED.get(family, {})):
        raise WeightsError(f"{family} has {_FIXED[family]} and the model {fixed}: export it as another family")
    has_mlm = "mlm" in ARCHITECTURES[architecture][1]
    head = config.mlm_activation or config.activation
    if has_mlm and head != _MLM_ACTIVATION.get(family, config.activation):
        raise WeightsError(
            f"the MLM head has the activation {head} and {architecture} would have "
            f"{_MLM_ACTIVATION.get(family, config.activation)}: export the encoder alone"
        )
    return {**values, **own}


def stored_groups(architecture: str, there: Collection[str]) -> tuple[str, ...]:
    """The groups that an export for this class of `ARCHITECTURES` writes, of a model that has the groups `there`."""
    groups = ARCHITECTURES[architecture][1]
    # An encoder's own class makes a new pooler where a file has none; nothing else may be left out.
    return tuple(group for group in groups if group in there or groups != ("pooler",))


def is_base(architecture: str) -> bool:
    """Whether it is the encoder's own class, whose names are without the encoder's in front."""
    return architecture.endswith("Model")


def fitting_architecture(
    family: Family, groups: Collection[str], named: str | None = None, needed: Collection[str] = ()
) -> str:
    """transformers' class for a model with these groups: the one that was named where it fits, else the one that holds most.

    `needed`: groups that it must hold. Raises WeightsError where no class has them together.
    """
    held = {
        name: its
        for name, (its_family, its) in ARCHITECTURES.items()
        if its_family == family and {*needed} <= {*its} and {*stored_groups(name, groups)} <= {*groups}
    }
    if not held:
        raise WeightsError(f"no class of {family}'s has the heads {', '.join(needed)} together: name an architecture")
    return named if named in held else max(held, key=lambda name: len(held[name]))


def _family(values: Mapping[str, Any], source: str) -> tuple[Family, str | None]:
    architectures = values.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise WeightsError(
            f"{source}: architectures is no list of names: take the config.json that belongs to the weights"
        )
    known = [name for name in architectures if name in ARCHITECTURES]
    # Files of Google's, and the oldest of Hugging Face's, have no model_type.
    inferred = ARCHITECTURES[known[0]][0] if known else "bert"
    model_type = values.get("model_type", inferred)
    if model_type not in FAMILIES:
        raise WeightsError(
            f"{source}: model_type {shown(repr(model_type))} is not one of {', '.join(FAMILIES)}: it cannot be loaded"
        )
    known = [name for name in known if ARCHITECTURES[name][0] == model_type]
    return model_type, known[0] if known else None


def _value(field: str, key: str, value: Any, source: str) -> Any:
    """A value of the type and range that the field has."""
    fault = None
    if field == "activation":
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            fault = f"is no activation of this encoder: there are {', '.join(_ACTIVATIONS)}"
        else:
            value = _ACTIVATIONS[value]
    elif field in OPTIONAL:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            fault = "is no number of at least 0"
        elif field.endswith("dropout") and value >= 1:
            fault = "is no number below 1"
        else:
            value = float(value)
    else:
        least, most = int(field != "pad_token_id"), _MOST_LAYERS if field == "num_layers" else _LARGEST_SIZE
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            fault = f"is no whole number from {least} to {most}"
    if fault:
        raise WeightsError(
            f"{source}: {key} {shown(repr(value))} {fault}: take the config.json that belongs to the weights"
        )
    return value


def _check_heads(fields: Mapping[str, Any], names: Mapping[str, str], source: str) -> None:
    """Raises WeightsError where heads are not of one width. `names`: what the file calls the fields."""
    if fields["hidden_size"] % fields["num_heads"]:
        heads, width = names["num_heads"], names["hidden_size"]
        raise WeightsError(
            f"{source}: {heads} {fields['num_heads']} does not divide {width} {fields['hidden_size']}: "
            "take the config.json that belongs to the weights"
        )


def _labels(values: Mapping[str, Any], source: str) -> int:
    """Classes of a classifier; 2 where nothing is said, as in transformers."""
    names = values.get("id2label")
    if isinstance(names, dict | list) and names:
        return len(names)
    return _value("num_labels", "num_labels", values.get("num_labels", 2), source)
