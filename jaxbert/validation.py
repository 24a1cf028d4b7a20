"""Contradictions between the fields of a configuration, and packages that it needs, found all at once and before anything is read."""

import contextlib
import functools
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from jaxbert.config import AttentionBackend, ComputeType, Config, ConfigError, ModelConfig, Phase, TrackingConfig

SHARES = """
    model.hidden_dropout model.attention_dropout data.heldout_share data.max_rejected_share data.random_next_share
    data.short_share masking.share masking.mask_share masking.random_share optimizer.wsd_decay_share
    optimizer.final_learning_rate_share optimizer.layer_decay
""".split()
POSITIVE = """
    model.hidden_size model.num_layers model.num_heads model.intermediate_size model.max_position_embeddings
    model.embedding_size model.layer_norm_epsilon model.initializer_range model.pad_vocab_to data.max_document_bytes
    data.vocabulary.size data.vocabulary.min_frequency data.vocabulary.alphabet_limit data.vocabulary.sample_megabytes
    data.max_sequences data.passes data.unit_megabytes masking.max_span_words model.vocab_size train.long_phase.batch_size
    optimizer.peak_learning_rate optimizer.epsilon train.num_steps train.batch_size train.accumulation_steps
    train.max_nonfinite_steps train.log_every train.evaluate_every train.prefetch checkpoint.every checkpoint.keep_last
    mesh.fsdp mesh.tensor mesh.cpu_devices
""".split()
NOT_NEGATIVE = """
    seed model.type_vocab_size data.workers optimizer.beta1 optimizer.beta2 optimizer.warmup_steps optimizer.weight_decay optimizer.max_grad_norm train.alpha
    train.long_phase.num_steps train.evaluate_batches optimizer.freeze_layers
""".split()
BELOW_ONE = "model.hidden_dropout model.attention_dropout data.heldout_share optimizer.beta1 optimizer.beta2".split()
# [PAD], [unused0] to [unused98], [UNK], [CLS], [SEP] and [MASK] come first in a vocabulary that is learnt.
RESERVED_TOKENS = 104
MIN_LENGTH = 8
MIN_DOCUMENT_BYTES = 100
# Tokens of a block of jax's flash attention on TPUs: rows are a multiple of it.
FLASH_BLOCK = 128
# Widths of a head that the GPU's kernels take (model/gpu_flash.py): powers of two, as Triton's blocks are.
GPU_FLASH_HEADS = (16, 32, 64, 128)


def validate(config: Config, num_devices: int | None = None) -> None:
    """Raise `ConfigError` with every contradiction between fields, and every package that is missing, one line each. Opens no file.

    `num_devices`: all devices of the run, over all processes; None, where rows are prepared and nothing is trained, leaves out the
    checks against the mesh and of the trackers.
    """
    problems = list(_ranges(config))
    checks = [_model, _data, _train, _phases]
    if num_devices is not None:
        checks += [functools.partial(_mesh, num_devices=num_devices), lambda c: trackers(c.tracking)]
    for check in checks:
        # A zero that is named above cannot be divided by; whatever else relates to it shows once it is mended.
        with contextlib.suppress(ZeroDivisionError):
            problems += check(config)
    if problems:
        raise ConfigError("\n".join(problems))


def _ranges(config: Config) -> Iterator[str]:
    value = functools.partial(_value, config)
    yield from (f"{name} is {value(name)}: it is a share, from 0 to 1" for name in SHARES if not 0 <= value(name) <= 1)
    above = [name for name in POSITIVE if value(name) is not None and not 0 < value(name) < math.inf]
    yield from (f"{name} is {value(name)}: it must be a number above 0" for name in above)
    yield from (f"{name} is {value(name)}: it must not be negative" for name in NOT_NEGATIVE if not value(name) >= 0)
    yield from (f"{name} is {value(name)}: it must be below 1" for name in BELOW_ONE if not value(name) < 1)
    if not config.workdir:
        yield "workdir is empty: name a folder"
    if config.seed >= 2**32:
        yield f"seed is {config.seed}: it must be below 2**32"
    if config.mesh.data < 1 and config.mesh.data != -1:
        yield f"mesh.data is {config.mesh.data}: it must be at least 1, or -1 for all devices that the other axes leave"


def _model(c: Config) -> Iterator[str]:
    m = c.model
    if m.hidden_size % m.num_heads:
        yield f"model.num_heads ({m.num_heads}) does not divide model.hidden_size ({m.hidden_size})"
    yield from not_one_of("model.dtype", m.dtype, ComputeType)
    yield from not_one_of("model.attention_backend", m.attention_backend, AttentionBackend)
    yield from attention(m, "model.", "model.attention_dropout")
    if c.data.pairs != "none" and m.type_vocab_size < 2:
        yield f'data.pairs "{c.data.pairs}" needs a model.type_vocab_size ({m.type_vocab_size}) of at least 2'


def not_one_of(name: str, value: Any, kind: Any) -> Iterator[str]:
    """That a field has none of the values of its Literal. The command line checks that, and a file of Python does not."""
    if value not in get_args(kind):
        yield f"{name} is {value!r}: choose one of {', '.join(map(str, get_args(kind)))}"


def attention(m: ModelConfig, prefix: str = "", dropout: str = "attention_dropout") -> Iterator[str]:
    """What the attention backend cannot do. `prefix`, `dropout`: of the names of the fields that choose it, and of its dropout."""
    chosen = f'{prefix}attention_backend "{m.attention_backend}"'
    if m.attention_backend in ("xla", "cudnn", "tpu_flash") and m.attention_dropout > 0:
        yield (f'{chosen} has no dropout: set {dropout} ({m.attention_dropout}) to 0, or use "explicit" or "gpu_flash"')
    if m.attention_backend == "gpu_flash" and m.head_size not in GPU_FLASH_HEADS:
        yield (
            f"{chosen} takes heads of {', '.join(map(str, GPU_FLASH_HEADS))}, and {prefix}hidden_size ({m.hidden_size}) / "
            f'{prefix}num_heads ({m.num_heads}) is {m.head_size}: use "explicit"'
        )
    if m.attention_backend == "cudnn" and m.dtype == "float32":
        yield f'{chosen} has no float32: set {prefix}dtype to "bfloat16", or use "xla"'


def _data(c: Config) -> Iterator[str]:
    d, k = c.data, c.masking
    if k.share == 0:
        yield "masking.share is 0: there would be nothing to predict"
    if d.max_document_bytes < MIN_DOCUMENT_BYTES:
        yield f"data.max_document_bytes is {d.max_document_bytes}: pieces of a document need {MIN_DOCUMENT_BYTES} bytes or more"
    if not d.text:
        yield "data.text is empty: name a file, a glob, or builtin"
    if not d.heldout_text and d.heldout_share == 0:
        yield "data.heldout_share is 0 and data.heldout_text is empty: there is nothing to evaluate on"
    if d.pairs == "none" and c.train.alpha != 0:
        yield f'data.pairs "none" has no NSP labels: set train.alpha ({c.train.alpha}) to 0'
    if k.mask_share + k.random_share > 1 + 1e-9:
        yield f"masking.mask_share ({k.mask_share}) and masking.random_share ({k.random_share}) add up to more than 1"
    if d.vocabulary.path == "":
        yield "data.vocabulary.path is empty: leave it out to learn a vocabulary"
    if d.vocabulary.path is None and d.vocabulary.size <= RESERVED_TOKENS:
        yield f"data.vocabulary.size ({d.vocabulary.size}) must be above the {RESERVED_TOKENS} reserved tokens"
    # Fewer tokens than data.vocabulary.size may well come out, where the text has no more: the config.json of such a run says so.
    if d.vocabulary.path is None and (c.model.vocab_size or 0) > d.vocabulary.size:
        yield (
            f"model.vocab_size ({c.model.vocab_size}) is more than the data.vocabulary.size ({d.vocabulary.size}) tokens that are "
            "learnt: leave it at None"
        )
    # Rows that are there may have been prepared where jieba is.
    if d.segmenter == "jieba" and not installed("jieba") and not Path(d.rows or Path(c.workdir) / "rows").exists():
        yield 'data.segmenter "jieba" needs the package jieba: pip install "jaxbert[chinese]"'


def _train(c: Config) -> Iterator[str]:
    t, o = c.train, c.optimizer
    if o.warmup_share is not None and not 0 <= o.warmup_share <= 1:
        yield f"optimizer.warmup_share is {o.warmup_share}: it is a share, from 0 to 1"
    if o.warmup_share is None and o.warmup_steps > t.num_steps:
        yield f"optimizer.warmup_steps ({o.warmup_steps}) is more than train.num_steps ({t.num_steps})"
    if o.freeze_layers > c.model.num_layers:
        yield f"optimizer.freeze_layers ({o.freeze_layers}) is more than model.num_layers ({c.model.num_layers})"
    if t.long_phase.num_steps > t.num_steps:
        yield (
            f"train.long_phase.num_steps ({t.long_phase.num_steps}) is more than train.num_steps ({t.num_steps}), "
            "which counts them"
        )


def _phases(c: Config) -> Iterator[str]:
    for phase in c.phases():
        yield from _phase(c, phase)


def _phase(c: Config, phase: Phase) -> Iterator[str]:
    long = phase.last_step == c.train.num_steps and c.train.long_phase.num_steps > 0
    length = ("train.long_phase" if long else "data") + ".max_length"
    predictions = ("train.long_phase" if long else "masking") + ".max_predictions"
    if phase.max_length < MIN_LENGTH:
        yield f"{length} is {phase.max_length}: a row needs at least {MIN_LENGTH} tokens"
    if phase.max_length > c.model.max_position_embeddings:
        yield (
            f"{length} ({phase.max_length}) is beyond model.max_position_embeddings ({c.model.max_position_embeddings})"
        )
    if c.model.attention_backend == "tpu_flash" and phase.max_length % FLASH_BLOCK:
        yield (
            f'{length} ({phase.max_length}) is no multiple of {FLASH_BLOCK}, which model.attention_backend "tpu_flash" needs: '
            'choose another length, or use "xla"'
        )
    if not 0 < phase.max_predictions <= phase.max_length:
        yield f"{predictions} ({phase.max_predictions}) must be from 1 to {length} ({phase.max_length})"
    if phase.batch_size < 1 or phase.batch_size % c.train.accumulation_steps:
        yield (
            f"{_batch_field(c, phase)} ({phase.batch_size}) is not divisible by "
            f"train.accumulation_steps ({c.train.accumulation_steps})"
        )


def _mesh(c: Config, num_devices: int) -> Iterator[str]:
    mesh = c.mesh
    fixed = mesh.fsdp * mesh.tensor
    if num_devices % fixed or (mesh.data != -1 and mesh.data * fixed != num_devices):
        yield (
            f"mesh.data ({mesh.data}) x mesh.fsdp ({mesh.fsdp}) x mesh.tensor ({mesh.tensor}) "
            f"does not make the number of devices ({num_devices})"
        )
        return
    sharers = num_devices // mesh.tensor
    for phase in c.phases():
        if phase.batch_size % (sharers * c.train.accumulation_steps):
            yield (
                f"{_batch_field(c, phase)} ({phase.batch_size}) is not divisible by the devices that share the batch "
                f"({sharers}) x train.accumulation_steps ({c.train.accumulation_steps})"
            )
    for name in ("model.num_heads", "model.intermediate_size", "model.pad_vocab_to"):
        if _value(c, name) % mesh.tensor:
            yield f"{name} ({_value(c, name)}) is not divisible by mesh.tensor ({mesh.tensor})"
    for name in ("model.hidden_size", "model.embedding_size"):
        if (_value(c, name) or 0) % mesh.fsdp:
            yield f"{name} ({_value(c, name)}) is not divisible by mesh.fsdp ({mesh.fsdp})"


def trackers(tracking: TrackingConfig) -> Iterator[str]:
    """What is wrong with the trackers that are asked for, in training of either kind."""
    if tracking.wandb and not installed("wandb"):
        yield "tracking.wandb is on, and wandb is not installed: pip install 'jaxbert[wandb]', or turn it off"


def installed(package: str) -> bool:
    """Whether there is such a package; it is not imported. A folder of its name, such as W&B's own of its runs, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _batch_field(c: Config, phase: Phase) -> str:
    own = phase.first_step > 0 and c.train.long_phase.batch_size is not None
    return "train.long_phase.batch_size" if own else "train.batch_size"


def _value(config: Config, dotted: str) -> Any:
    return functools.reduce(getattr, dotted.split("."), config)
