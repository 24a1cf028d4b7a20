"""What a run is: one tree of frozen dataclasses. Every default stands here and nowhere else.

`configs/*.py` return a `Config`; the command line overrides any field of it (`jaxbert/command_line.py`);
`validation.validate` finds every contradiction between fields before anything is read.
Sizes of published models are facts from Devlin et al. 2018 (section 3 and appendix A.2), Turc et al. 2019 and Liu et al. 2019.
"""

import dataclasses
import math
from typing import Literal

Pooling = Literal["cls", "mean", "max"]
"""How the vectors of tokens become the vector of a text."""
ComputeType = Literal["auto", "float32", "bfloat16"]
"""What activations are computed in. "auto": bfloat16 on GPU and TPU, float32 on CPU."""
AttentionBackend = Literal["explicit", "xla", "gpu_flash", "cudnn", "tpu_flash"]


class UserError(ValueError):
    """Something that the user can mend: its text is one line that names the thing and the way out.

    Entry points print the text alone; every error of the kind, in any room, derives from this class.
    """


class ConfigError(UserError):
    """A configuration that cannot be run; its text has one line per contradiction and names the fields."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder and its pretraining heads (Devlin et al. 2018, section 3)."""

    vocab_size: int | None = None
    """Tokens in the vocabulary. None: as many as the tokenizer of the run has."""
    hidden_size: int = 768
    """Width of the residual stream, H in the paper."""
    num_layers: int = 12
    """Number of transformer blocks, L in the paper."""
    num_heads: int = 12
    """Attention heads per block, A in the paper; divides hidden_size."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer; 4 x hidden_size in the paper."""
    max_position_embeddings: int = 512
    """Longest sequence that has position embeddings, in tokens."""
    type_vocab_size: int = 2
    """Number of segment (token type) embeddings. 0: none, as in DistilBERT."""
    embedding_size: int | None = None
    """Width of the embeddings; where it is not hidden_size they are projected to it (ELECTRA). None: hidden_size."""
    tie_word_embeddings: bool = True
    """The decoder of the MLM head is the word table, as in BERT. False: it is a table of its own."""
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    """Feed-forward activation; "gelu" is the exact (erf) form, "gelu_tanh" Google's original approximation."""
    mlm_activation: Literal["gelu", "gelu_tanh", "relu"] | None = None
    """MLM-head activation. None: `activation`, as in BERT; the heads of RoBERTa, XLM-R and ELECTRA have "gelu" whatever that is."""
    hidden_dropout: float = 0.1
    """Dropout rate on embeddings and on each sublayer's output, 0 to 1."""
    attention_dropout: float = 0.1
    """Dropout rate on attention probabilities, 0 to 1."""
    layer_norm_epsilon: float = 1e-12
    """Added to the variance in every LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of the truncated normal that initialises kernels and embeddings."""
    attention_backend: AttentionBackend = "explicit"
    """Attention kernel. "gpu_flash" (NVIDIA since Ampere) keeps no scores in memory and draws the dropout of "explicit"; "xla", "cudnn" and
    "tpu_flash" need attention_dropout 0. A backend that cannot serve raises."""
    scan_layers: bool = False
    """Compile one block and scan it over the layers: compiles faster, parameters are stacked on a leading axis."""
    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory, about a third more compute."""
    pad_vocab_to: int = 128
    """The embedding table is padded inside the model to a multiple of this many rows; padding is never predicted."""
    dtype: ComputeType = "auto"
    """Compute type. "auto": bfloat16 on GPU and TPU, float32 on CPU, where bfloat16 is faster if it has AMX (Intel's Xeon Scalable since the 4th generation)."""

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def embedding_width(self) -> int:
        """Width of the embedding tables, and of the MLM head in front of its decoder."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table inside the model. Raises ConfigError while vocab_size is None."""
        if self.vocab_size is None:
            raise ConfigError("model.vocab_size is None: set it to the tokenizer's size before the model is built")
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """The WordPiece vocabulary: learnt from the training documents, or an existing one."""

    path: str | None = None
    """An existing vocab.txt, tokenizer.json or Hugging Face tokenizer folder. None: learn one from the text."""
    size: int = 30522
    """Tokens to learn, special and unused ones included."""
    lowercase: bool | None = None
    """Lower-case the text and strip accents ("uncased"). None: yes, but for an existing vocabulary that has capitals or says no."""
    min_frequency: int = 2
    """A piece that is seen less often than this is not learnt, in occurrences."""
    alphabet_limit: int = 6000
    """Characters kept at most, the most frequent ones; others become [UNK]."""
    sample_megabytes: int = 512
    """Text that is read to learn the vocabulary, at most, in MB (1e6 bytes) of UTF-8."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Raw text, and how documents become rows of token ids."""

    text: tuple[str, ...] = ("builtin",)
    """Files, directories, globs, fsspec URLs, tfds:NAME/CONFIG:SPLIT, or builtin (the documentation in this Python)."""
    heldout_text: tuple[str, ...] = ()
    """Text to evaluate on, in the same forms. Empty: heldout_share of the documents of `text`."""
    heldout_share: float = 0.02
    """Share of the documents held out for evaluation, chosen by a hash of their content, 0 to 1."""
    document_split: Literal["blank_line", "line", "file"] = "blank_line"
    """Where a document ends in a text file: at a blank line, at every line, or at the file's end."""
    text_field: str = "text"
    """The field or column that holds the text in .jsonl and .parquet files and in tfds data sets."""
    max_document_bytes: int = 1_000_000
    """A longer document is cut into pieces of at most this many bytes of UTF-8, at sentence ends where there are any."""
    max_rejected_share: float = 0.01
    """The run stops when more than this share of the documents is rejected (not UTF-8, NUL, lone surrogates), 0 to 1."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    """The WordPiece vocabulary."""
    max_length: int = 128
    """Tokens in a row."""
    pairs: Literal["nsp", "sop", "none"] = "nsp"
    """Second segments: half random (BERT's NSP), half swapped (ALBERT's SOP), or none (RoBERTa's full sentences)."""
    random_next_share: float = 0.5
    """Share of pairs whose second segment is random ("nsp") or swapped ("sop"), 0 to 1."""
    short_share: float = 0.1
    """Share of sequences with a random shorter target length, 0 to 1."""
    packing: bool = False
    """Put several sequences into a row by best fit; attention, positions, [CLS], NSP and MLM stay per sequence."""
    max_sequences: int | None = None
    """Sequences in a packed row, at most. None: one for every 16 tokens of the row. Without packing a row holds one."""
    passes: int = 1
    """Times that the corpus is cut into sequences, each time with other pairs and lengths (BERT's dupe_factor)."""
    segmenter: Literal["vocabulary", "jieba"] = "vocabulary"
    """What a word is for whole-word masking: the tokenizer's words (a CJK character each), or jieba's Chinese words."""
    rows: str | None = None
    """Folder of the prepared rows. None: WORKDIR/rows."""
    unit_megabytes: float = 4.0
    """Text in one unit of preparation work, in MB (1e6 bytes) of UTF-8; units are what workers share and resume by."""
    workers: int = 0
    """Processes that prepare rows. 0: one per core. The rows do not depend on it."""

    def sequences_per_row(self, max_length: int) -> int:
        """Sequences that a row of `max_length` tokens has room for, S."""
        if not self.packing:
            return 1
        return self.max_sequences or max(max_length // 16, 1)


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Masked-LM masking, drawn anew in every epoch (Devlin et al. 2018, section 3.1)."""

    share: float = 0.15
    """Share of each sequence's tokens to predict, 0 to 1; rounded as in BERT, at least one token."""
    unit: Literal["token", "word", "span"] = "token"
    """What is masked as a whole: tokens (BERT), whole words, or spans of words."""
    max_span_words: int = 3
    """Longest span in words; a span of n words is drawn with probability proportional to 1/n (Lan et al. 2020)."""
    mask_share: float = 0.8
    """Share of the chosen tokens that become [MASK], 0 to 1."""
    random_share: float = 0.1
    """Share of the chosen tokens that become a random token, 0 to 1; the rest stays as it is."""
    max_predictions: int | None = None
    """Predicted tokens in a row, at most. None: share x max_length, rounded up, and half a token per packed sequence."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or LAMB, with clipping and a learning-rate schedule (Devlin et al. 2018, appendix A.2)."""

    name: Literal["adamw", "lamb"] = "adamw"
    """AdamW (decoupled decay), or LAMB for large batches (You et al. 2020)."""
    peak_learning_rate: float = 1e-4
    """Learning rate at the end of the warm-up."""
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """After the warm-up: linear or cosine decay to the end, constant, or constant with a decay at the end ("wsd")."""
    warmup_steps: int = 10_000
    """Steps of linear warm-up from 0."""
    warmup_share: float | None = None
    """Warm-up as a share of all steps, 0 to 1, in place of warmup_steps."""
    wsd_decay_share: float = 0.2
    """Share of all steps that the final decay of "wsd" takes, 0 to 1."""
    final_learning_rate_share: float = 0.0
    """Learning rate at the last step as a share of the peak, 0 to 1."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    epsilon: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay; on kernels and embeddings only."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm. 0: no clipping."""
    layer_decay: float = 1.0
    """Each block's learning rate as a share of that of the block above; the embeddings are below the first (Sun et al. 2019)."""
    freeze_embeddings: bool = False
    """Leave the embeddings as they are."""
    freeze_layers: int = 0
    """Leave so many of the lowest blocks as they are, and the embeddings with them."""

    def num_warmup_steps(self, num_steps: int) -> int:
        """Steps of warm-up in a run of `num_steps`."""
        return self.warmup_steps if self.warmup_share is None else round(self.warmup_share * num_steps)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each axis of the mesh."""

    data: int = -1
    """Devices that share the batch and hold whole parameters. -1: all that the other axes leave."""
    fsdp: int = 1
    """Devices that share the batch and each hold a part of every parameter."""
    tensor: int = 1
    """Devices that share heads, feed-forward width and vocabulary of one layer."""
    cpu_devices: int = 1
    """Devices that the CPU is presented as, when it is what trains. A small model trains faster with one a core."""


@dataclasses.dataclass(frozen=True)
class LongPhase:
    """The last steps of a run at another length (BERT: 90 % of the steps at 128, the last 10 % at 512)."""

    num_steps: int = 0
    """Steps of the phase, counted in train.num_steps. 0: no such phase."""
    max_length: int = 512
    """Tokens in a row."""
    max_predictions: int | None = None
    """As masking.max_predictions, for this length."""
    batch_size: int | None = None
    """Rows in the global batch. None: train.batch_size."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of the run, batch, loss, and what the host does around the steps."""

    num_steps: int = 1_000_000
    """Optimizer steps of the whole run."""
    batch_size: int = 256
    """Rows in the global batch, over all devices and accumulation steps."""
    accumulation_steps: int = 1
    """Microbatches that a step is computed in; the loss and the gradient are those of one, except that dropout draws other masks."""
    alpha: float = 1.0
    """Weight of the NSP loss in L = L_MLM + alpha * L_NSP. BERT: 1."""
    long_phase: LongPhase = LongPhase()
    """The last steps at another length."""
    max_nonfinite_steps: int = 10
    """Steps in a row with a non-finite loss or gradient (each is skipped and counted) that stop the run."""
    log_every: int = 100
    """Steps between two lines of metrics; each is the mean over those steps."""
    evaluate_every: int = 10_000
    """Steps between two held-out evaluations; there is always one at the end."""
    evaluate_batches: int = 100
    """Held-out batches in an evaluation, at most, of rows drawn from all, always the same ones; 0: all."""
    prefetch: int = 2
    """Batches that wait on the device ahead of the step."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is saved, and how much of it is kept."""

    every: int = 10_000
    """Steps between two checkpoints; there is always one at the end."""
    keep_last: int = 3
    """Newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest held-out loss; in fine-tuning, with the highest measure of the task."""


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go beside the console and WORKDIR/metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard events to WORKDIR/tensorboard."""
    wandb: bool = False
    """Log to Weights & Biases (extra: wandb); honours WANDB_MODE=offline."""
    wandb_project: str = "jaxbert"
    """Weights & Biases project."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes (hosts) in one run."""

    initialize: bool = False
    """Call jax.distributed.initialize; on Cloud TPU pods and under SLURM the rest is found by itself."""
    coordinator_address: str | None = None
    """HOST:PORT of process 0, where it is not found by itself."""
    num_processes: int | None = None
    """Processes in the run, where it is not found by itself."""
    process_id: int | None = None
    """This process's number, where it is not found by itself."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of steps at one length, resolved from `Config` by `Config.phases`."""

    first_step: int
    last_step: int
    """The first step that is no longer in the phase."""
    max_length: int
    max_predictions: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A pretraining run."""

    name: str = "bert"
    """Name of the run, in reports and trackers."""
    workdir: str = "runs/default"
    """Folder of everything that the run writes. A folder that holds a run resumes it."""
    seed: int = 0
    """Seed of parameters, dropout, masking, order, pairs."""
    model: ModelConfig = ModelConfig()
    """The encoder and its heads."""
    data: DataConfig = DataConfig()
    """Text and rows."""
    masking: MaskingConfig = MaskingConfig()
    """Masked-LM masking."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its schedule."""
    train: TrainConfig = TrainConfig()
    """Steps, batch and loss."""
    mesh: MeshConfig = MeshConfig()
    """The device mesh."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    tracking: TrackingConfig = TrackingConfig()
    """Where metrics go."""
    distributed: DistributedConfig = DistributedConfig()
    """Several processes in one run."""

    def phases(self) -> tuple[Phase, ...]:
        """The stretches of steps at one length, in order; none is empty."""
        train, long = self.train, self.train.long_phase
        switch = train.num_steps - long.num_steps
        first = Phase(
            0,
            switch,
            self.data.max_length,
            self._predictions(self.data.max_length, self.masking.max_predictions),
            train.batch_size,
        )
        second = Phase(
            switch,
            train.num_steps,
            long.max_length,
            self._predictions(long.max_length, long.max_predictions),
            long.batch_size or train.batch_size,
        )
        return tuple(phase for phase in (first, second) if phase.last_step > phase.first_step)

    def _predictions(self, max_length: int, given: int | None) -> int:
        if given is not None:
            return given
        # Each packed sequence rounds its own share, up by at most half a token.
        slack = self.data.sequences_per_row(max_length) / 2 if self.data.packing else 0
        return min(max_length, math.ceil(self.masking.share * max_length + slack))
