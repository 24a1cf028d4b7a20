"""One table: the names of our parameters, and what other systems call them.

`TABLE` has our modules and the torch modules of Hugging Face's classes. The names in Google's TensorFlow checkpoints and in
the Flax classes of transformers 4 follow from the torch names by rule (`tensorflow_name`, `flax_name`).

Arrays differ in layout only. Ours: kernels are [inputs..., outputs...], attention's heads on axes of their own, layers one by
one (`layers_0`) or stacked (`layers`), the vocabulary padded. torch: kernels are [outputs, inputs], all of two axes.
TensorFlow and Flax: kernels are [inputs, outputs], all of two axes.

Sources: modeling_bert.py, modeling_roberta.py, modeling_distilbert.py, modeling_electra.py and their Flax counterparts in
transformers 4; modeling.py and run_pretraining.py in google-research/bert.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from jaxbert.config import ModelConfig, UserError


class WeightsError(UserError):
    """Weights that cannot be taken in or given out; its text is one line that names the file and the way out."""


def shown(value: object, most: int = 120) -> str:
    """A name or a value out of a file, for a message: what does not print is escaped, and cut behind `most` characters.

    Text comes without quotes: `shown(repr(name))` has them.
    """
    text = value if isinstance(value, str) else repr(value)
    start = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return start if len(text) <= most else f"{start}... ({len(text)} characters)"


Family = Literal["bert", "roberta", "xlm-roberta", "distilbert", "electra"]

BASE: Mapping[Family, str] = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "distilbert": "distilbert",
    "electra": "electra",
}
"""The torch name of the encoder inside a model with a head; a checkpoint of the encoder alone is without it."""

Sizes = tuple[str, ...]
Kind = Literal["dense", "norm", "table", "bias"]


@dataclasses.dataclass(frozen=True)
class Row:
    """A module of ours, and what it is called elsewhere."""

    module: str
    """Ours; {} is the number of the layer. Its first part is the group."""
    kind: Kind
    """dense: kernel and bias; norm: scale and bias; table: embedding; bias: bias."""
    inputs: Sizes
    """Names of the sizes that a kernel contracts, or of a table's rows."""
    outputs: Sizes
    """Names of the sizes of what comes out."""
    names: Mapping[str, str]
    """BASE -> torch module; families that are not in it have no such module."""
    in_base: bool = False
    """Whether it is part of the encoder's own torch class, whose name may stand before it."""


def _base(module: str, kind: Kind, inputs: Sizes, outputs: Sizes, bert: str, distilbert: str | None) -> Row:
    names = dict.fromkeys(("bert", "roberta", "electra"), bert)
    return Row(module, kind, inputs, outputs, names | ({"distilbert": distilbert} if distilbert else {}), in_base=True)


def _head(module: str, kind: Kind, inputs: Sizes, outputs: Sizes, **names: str) -> Row:
    return Row(module, kind, inputs, outputs, names)


_HIDDEN, _HEADS, _MLP = ("hidden",), ("heads", "head"), ("mlp",)
_VOCAB, _WIDTH = ("vocab",), ("embedding",)
_ATTENTION, _FEED_FORWARD = "encoder/layers_{}/attention", "encoder/layers_{}/feed_forward"
_BERT, _DISTIL = "encoder.layer.{}", "transformer.layer.{}"
_ALL = ("bert", "roberta", "distilbert", "electra")

DECODER: Mapping[str, str] = {
    "bert": "cls.predictions.decoder",
    "roberta": "lm_head.decoder",
    "distilbert": "vocab_projector",
    "electra": "generator_lm_head",
}
"""The decoder in torch, of kernel and bias. Of a tied one, they repeat the word table and the bias of the MLM head."""

# fmt: off
TABLE: tuple[Row, ...] = (
    _base("encoder/embeddings/word", "table", _VOCAB, _WIDTH, "embeddings.word_embeddings", "embeddings.word_embeddings"),
    _base("encoder/embeddings/position", "table", ("positions",), _WIDTH, "embeddings.position_embeddings", "embeddings.position_embeddings"),
    _base("encoder/embeddings/token_type", "table", ("types",), _WIDTH, "embeddings.token_type_embeddings", None),
    _base("encoder/embeddings/layer_norm", "norm", (), _WIDTH, "embeddings.LayerNorm", "embeddings.LayerNorm"),
    Row("encoder/embeddings/projection", "dense", _WIDTH, _HIDDEN, {"electra": "embeddings_project"}, in_base=True),
    _base(f"{_ATTENTION}/query", "dense", _HIDDEN, _HEADS, f"{_BERT}.attention.self.query", f"{_DISTIL}.attention.q_lin"),
    _base(f"{_ATTENTION}/key", "dense", _HIDDEN, _HEADS, f"{_BERT}.attention.self.key", f"{_DISTIL}.attention.k_lin"),
    _base(f"{_ATTENTION}/value", "dense", _HIDDEN, _HEADS, f"{_BERT}.attention.self.value", f"{_DISTIL}.attention.v_lin"),
    _base(f"{_ATTENTION}/output", "dense", _HEADS, _HIDDEN, f"{_BERT}.attention.output.dense", f"{_DISTIL}.attention.out_lin"),
    _base(f"{_ATTENTION}/layer_norm", "norm", (), _HIDDEN, f"{_BERT}.attention.output.LayerNorm", f"{_DISTIL}.sa_layer_norm"),
    _base(f"{_FEED_FORWARD}/intermediate", "dense", _HIDDEN, _MLP, f"{_BERT}.intermediate.dense", f"{_DISTIL}.ffn.lin1"),
    _base(f"{_FEED_FORWARD}/output", "dense", _MLP, _HIDDEN, f"{_BERT}.output.dense", f"{_DISTIL}.ffn.lin2"),
    _base(f"{_FEED_FORWARD}/layer_norm", "norm", (), _HIDDEN, f"{_BERT}.output.LayerNorm", f"{_DISTIL}.output_layer_norm"),
    Row("pooler/dense", "dense", _HIDDEN, _HIDDEN, {"bert": "pooler.dense", "roberta": "pooler.dense"}, in_base=True),
    _head("mlm/dense", "dense", _HIDDEN, _WIDTH, bert="cls.predictions.transform.dense", roberta="lm_head.dense",
          distilbert="vocab_transform", electra="generator_predictions.dense"),
    _head("mlm/layer_norm", "norm", (), _WIDTH, bert="cls.predictions.transform.LayerNorm", roberta="lm_head.layer_norm",
          distilbert="vocab_layer_norm", electra="generator_predictions.LayerNorm"),
    _head("mlm", "bias", (), _VOCAB, bert="cls.predictions", roberta="lm_head", distilbert="vocab_projector",
          electra="generator_lm_head"),
    # Where it is not the word table (ModelConfig.tie_word_embeddings).
    _head("mlm/decoder", "table", _VOCAB, _WIDTH, **DECODER),
    _head("nsp/dense", "dense", _HIDDEN, ("two",), bert="cls.seq_relationship"),
    # BERT classifies its pooler's output; the others have a layer of their own in front.
    _head("sequence/hidden", "dense", _HIDDEN, _HIDDEN, roberta="classifier.dense", distilbert="pre_classifier",
          electra="classifier.dense"),
    _head("sequence/dense", "dense", _HIDDEN, ("labels",), bert="classifier", roberta="classifier.out_proj",
          distilbert="classifier", electra="classifier.out_proj"),
    _head("token/dense", "dense", _HIDDEN, ("labels",), **dict.fromkeys(_ALL, "classifier")),
    _head("span/dense", "dense", _HIDDEN, ("two",), **dict.fromkeys(_ALL, "qa_outputs")),
    _head("choice/hidden", "dense", _HIDDEN, _HIDDEN, distilbert="pre_classifier", electra="sequence_summary.summary"),
    _head("choice/dense", "dense", _HIDDEN, ("one",), **dict.fromkeys(_ALL, "classifier")),
    # jaxbert's own: transformers has no such class.
    _head("relation/dense", "dense", ("pair",), ("labels",), **dict.fromkeys(_ALL, "relation_classifier")),
    # ELECTRA's replaced-token detection (Clark et al. 2020, section 2).
    _head("discriminator/hidden", "dense", _HIDDEN, _HIDDEN, electra="discriminator_predictions.dense"),
    _head("discriminator/dense", "dense", _HIDDEN, ("one",), electra="discriminator_predictions.dense_prediction"),
)
# fmt: on

WORD_TABLE = "encoder/embeddings/word/embedding"
POSITION_TABLE = "encoder/embeddings/position/embedding"
MLM_BIAS = "mlm/bias"
DECODER_TABLE = "mlm/decoder/embedding"
OVER_VOCABULARY = (WORD_TABLE, DECODER_TABLE, MLM_BIAS)
"""Parameters with a row for each token."""

# Buffers that old versions stored: no weights.
BUFFERS = re.compile(r"(.*\.)?embeddings\.(position_ids|token_type_ids)")

LEAVES: Mapping[Kind, Sizes] = {
    "dense": ("kernel", "bias"),
    "norm": ("scale", "bias"),
    "table": ("embedding",),
    "bias": ("bias",),
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One of our parameters (its layers one by one, its vocabulary unpadded) and its place in torch."""

    path: str
    """Ours, "encoder/layers_3/attention/query/kernel"."""
    shape: tuple[int, ...]
    """Ours, without padding."""
    contracted: int
    """Leading axes of `shape` that a kernel contracts; 0 for all that is no kernel."""
    kind: Kind
    torch: str | None
    """Name in torch, with the encoder's name before it. None: this family has none."""
    unused_rows: int = 0
    """Rows at the top of the torch table that no token uses (RoBERTa's positions begin behind the padding's)."""

    @property
    def group(self) -> str:
        return self.path.split("/", 1)[0]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        if self.contracted:
            return (math.prod(self.shape[self.contracted :]), math.prod(self.shape[: self.contracted]))
        if self.kind == "table":
            return (self.shape[0] + self.unused_rows, *self.shape[1:])
        return (math.prod(self.shape),)

    def from_torch(self, array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """An array of `torch_shape` as one of `shape`: a view."""
        if self.contracted:
            return array.T.reshape(self.shape)
        return array[self.unused_rows :].reshape(self.shape)

    def to_torch(self, array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """An array of `shape` in torch's layout, without the unused rows."""
        if self.contracted:
            return array.reshape(self.torch_shape[::-1]).T
        return array if self.kind == "table" else array.reshape(-1)


def parameters(
    config: ModelConfig, family: Family, groups: Iterable[str], labels: int = 2, unused_positions: int = 0
) -> Iterator[Parameter]:
    """The parameters of a model with these groups, layers in order.

    `labels`: classes of a sequence or token classifier; `unused_positions`: padding_idx + 1 in RoBERTa, else 0.
    """
    sizes = {
        "vocab": config.vocab_size or 0,
        "positions": config.max_position_embeddings,
        "types": config.type_vocab_size,
        "embedding": config.embedding_width,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "head": config.head_size,
        "mlp": config.intermediate_size,
        "pair": 2 * config.hidden_size,
        "labels": labels,
        "two": 2,
        "one": 1,
    }
    absent = {
        "encoder/embeddings/token_type": not config.type_vocab_size,
        "encoder/embeddings/projection": config.embedding_width == config.hidden_size,
        "sequence/hidden": family == "bert",
        "choice/hidden": family not in ("distilbert", "electra"),
        "mlm/decoder": config.tie_word_embeddings,
    }
    wanted = set(groups)
    for row in TABLE:
        if row.module.split("/", 1)[0] not in wanted or absent.get(row.module):
            continue
        for layer in range(config.num_layers) if "{}" in row.module else (0,):
            for leaf in LEAVES[row.kind]:
                is_kernel, is_table = leaf == "kernel", leaf == "embedding"
                dimensions = (*row.inputs, *row.outputs) if is_kernel or is_table else row.outputs
                path = f"{row.module.format(layer)}/{leaf}"
                yield Parameter(
                    path,
                    tuple(sizes[name] for name in dimensions),
                    len(row.inputs) if is_kernel else 0,
                    row.kind,
                    _torch_name(row, leaf, layer, family),
                    unused_positions if path == POSITION_TABLE else 0,
                )


def _torch_name(row: Row, leaf: str, layer: int, family: Family) -> str | None:
    module = row.names.get(BASE[family])
    if module is None:
        return None
    prefix = f"{BASE[family]}." if row.in_base else ""
    return f"{prefix}{module.format(layer)}.{'bias' if leaf == 'bias' else 'weight'}"


def canonical(name: str, family: Family, known: Mapping[str, object]) -> str:
    """A torch name as `Parameter.torch` has it: gamma and beta renamed, the encoder's name before what is of the encoder."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    prefixed = f"{BASE[family]}.{name}"
    return prefixed if name not in known and prefixed in known else name


def without_base(name: str, family: Family) -> str:
    """A torch name as the encoder's own class has it."""
    return name.removeprefix(f"{BASE[family]}.")


# Heads in google-research/bert (run_pretraining.py, run_classifier.py, run_squad.py); their kernels are [outputs, inputs].
_TENSORFLOW_HEADS: Mapping[str, str] = {
    "cls.predictions.bias": "cls/predictions/output_bias",
    "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
    "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
    "classifier.weight": "output_weights",
    "classifier.bias": "output_bias",
    "qa_outputs.weight": "cls/squad/output_weights",
    "qa_outputs.bias": "cls/squad/output_bias",
}


def tensorflow_name(parameter: Parameter) -> tuple[str, bool]:
    """Name in a checkpoint of google-research/bert, and whether the array there is torch's transposed."""
    assert parameter.torch is not None
    if parameter.torch in _TENSORFLOW_HEADS:
        return _TENSORFLOW_HEADS[parameter.torch], False
    module, _ = parameter.torch.rsplit(".", 1)
    module = re.sub(r"\.layer\.(\d+)\.", r".layer_\1.", module).replace(".", "/")
    leaf = parameter.path.rsplit("/", 1)[1]
    if parameter.kind == "table":
        return module, False
    if parameter.kind == "norm":
        return f"{module}/{'gamma' if leaf == 'scale' else 'beta'}", False
    return f"{module}/{leaf}", leaf == "kernel"


def flax_name(parameter: Parameter) -> tuple[str, bool]:
    """Path in the tree of a Flax class of transformers 4, and whether the array there is torch's transposed."""
    assert parameter.torch is not None
    module, _ = parameter.torch.rsplit(".", 1)
    # A decoder is a dense layer there.
    leaf = "kernel" if parameter.path == DECODER_TABLE else parameter.path.rsplit("/", 1)[1]
    return f"{module.replace('.', '/')}/{leaf}", leaf == "kernel"
