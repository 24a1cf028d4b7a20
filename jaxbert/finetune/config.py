"""What a fine-tuning run is: frozen dataclasses; each default stands here, or in config.py, and nowhere else."""

import dataclasses
from typing import Literal

from jaxbert.config import (
    CheckpointConfig,
    ComputeType,
    DistributedConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    Pooling,
    TrackingConfig,
)


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """A class for each text or pair of texts; several classes, or a number."""

    kind: Literal["classification"] = "classification"
    """The task."""
    target: Literal["class", "multi-label", "regression"] = "class"
    """One class, any number of classes (a list in JSONL, else separated by `label_separator`), or a number."""
    text: str = "text"
    """Column of the text."""
    text_pair: str | None = None
    """Column of the second text. None: there is none."""
    label: str = "label"
    """Column of the class, the classes, or the number."""
    label_separator: str = ","
    """What stands between the classes of a multi-label row in TSV and CSV."""
    labels: tuple[str, ...] = ()
    """The classes, in order. Empty: those that the files have, sorted."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of an example in the loss: 1, or inverse to how frequent its class is in the training rows (mean 1)."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes, 0 to 1."""
    threshold: float = 0.5
    """Probability from which a class of "multi-label" is predicted, 0 to 1."""
    metric: str | None = None
    """What the best checkpoint is chosen by. None: accuracy; macro_f1 of several labels; spearman of numbers."""
    positive: str | None = None
    """The class whose F1 is "f1", where there are two. None: the second."""


@dataclasses.dataclass(frozen=True)
class TaggingConfig:
    """A tag for each word: named entities, chunks, parts of speech."""

    kind: Literal["tagging"] = "tagging"
    """The task."""
    scheme: Literal["iob2", "iob1", "bioes", "words"] = "iob2"
    """How the files tag entities: IOB2, IOB1, BIOES; "words": every word has a tag of its own (parts of speech)."""
    tags: Literal["iob2", "bioes"] | None = None
    """How the model tags entities, whatever the files do. None: BIOES where they are in it, else IOB2."""
    word_column: int = 0
    """CoNLL: column of the word, from 0."""
    tag_column: int = -1
    """CoNLL: column of the tag, from 0; -1 is the last one."""
    text: str = "text"
    """JSONL: field of the text."""
    spans: str = "entities"
    """JSONL: field of the entities, [start, end, type] in characters or {"start", "end", "label"}; or type -> name -> [[start, end]]."""
    inclusive_ends: bool = False
    """JSONL: an entity's end is its last character (CLUENER), not the one after it."""
    labels: tuple[str, ...] = ()
    """Types of entities (of "words": the tags), in order. Empty: those that the files have, sorted."""
    metric: str | None = None
    """What the best checkpoint is chosen by. None: f1; accuracy of "words"."""


@dataclasses.dataclass(frozen=True)
class RelationConfig:
    """The relation between two marked entities of a text."""

    kind: Literal["relation"] = "relation"
    """The task."""
    text: str = "text"
    """Column of the text; the entities are marked in it as <e1>..</e1> and <e2>..</e2>, or given by `spans`."""
    spans: str | None = None
    """JSONL: field of the two entities, [[start, end], [start, end]] in characters. None: they are marked in the text."""
    label: str = "label"
    """Column of the relation, with its direction where it has one: "Cause-Effect(e2,e1)"."""
    labels: tuple[str, ...] = ()
    """The relations, in order. Empty: those that the files have, sorted."""
    other: str = "Other"
    """The relation that the official macro-F1 leaves out ("no_relation" of TACRED). "": there is none."""
    metric: str = "macro_f1"
    """What the best checkpoint is chosen by."""


@dataclasses.dataclass(frozen=True)
class SpanConfig:
    """The answer to a question, as a span of its context (SQuAD 1.1, 2.0, CMRC)."""

    kind: Literal["span"] = "span"
    """The task."""
    stride: int = 128
    """Tokens that a window of a long context repeats of the one before."""
    max_question_length: int = 64
    """Longer questions are cut to so many tokens."""
    max_answer_length: int = 30
    """Longest answer, in tokens."""
    n_best: int = 20
    """Candidates for starts and ends that are combined, and answers that are kept."""
    null_threshold: float = 0.0
    """SQuAD 2.0: no answer where its score is above the best answer's by more than this."""
    characters: bool = False
    """Score F1 over characters and strip Chinese punctuation (CMRC), not over English words (SQuAD)."""
    metric: str = "f1"
    """What the best checkpoint is chosen by."""


@dataclasses.dataclass(frozen=True)
class ChoiceConfig:
    """Which of several continuations or answers is the right one (SWAG, COPA, RACE)."""

    kind: Literal["choice"] = "choice"
    """The task."""
    context: str = "sent1"
    """Column of what all choices share."""
    question: str | None = "sent2"
    """Column of what stands before every choice (a question, the beginning of a sentence). None: there is none."""
    choices: tuple[str, ...] = ("ending0", "ending1", "ending2", "ending3")
    """Columns of the choices, or one column with a list of them."""
    label: str = "label"
    """Column of the right one: its number, or its letter (A, B, ...)."""
    first_number: int = 0
    """What the first choice is numbered by."""
    metric: str = "accuracy"
    """What the best checkpoint is chosen by."""


@dataclasses.dataclass(frozen=True)
class SimilarityConfig:
    """Vectors of texts that are near where the texts are alike: for retrieval and similarity (a bi-encoder)."""

    kind: Literal["similarity"] = "similarity"
    """The task."""
    target: Literal["pairs", "dropout"] = "pairs"
    """"pairs": two columns of texts that belong together, against all others in the batch; "dropout": each text against itself with
    other dropout (unsupervised SimCSE, Gao et al. 2021), of single texts."""
    anchor: str = "anchor"
    """Column of the first text (a question, a query)."""
    positive: str = "positive"
    """Column of the text that belongs to it; "dropout" needs it in dev and test alone."""
    negatives: str | None = None
    """Column of texts that do not belong to it though they look so: one, or a list in JSONL; dev and test need not have it. None: there
    are none."""
    score: str | None = None
    """Column of how alike two texts are, a number: dev and test rows that have it are measured by its Spearman correlation with the
    cosine; all rows of train are learnt as texts that belong together. None: by where the positive is ranked among all texts (MRR,
    recall)."""
    pooling: Pooling = "mean"
    """How token vectors become a text's."""
    temperature: float = 0.05
    """What cosines are divided by in the loss."""
    metric: str | None = None
    """What the best checkpoint is chosen by. None: mrr; spearman where there are scores."""


TaskConfig = ClassificationConfig | TaggingConfig | RelationConfig | SpanConfig | ChoiceConfig | SimilarityConfig


@dataclasses.dataclass(frozen=True)
class ExamplesConfig:
    """Labelled files, and how their rows become sequences."""

    train: tuple[str, ...] = ("builtin",)
    """Files, globs, fsspec URLs, or tfds:NAME/CONFIG:SPLIT (without :SPLIT its train); builtin: which package a docstring of this Python
    comes from; -: standard input, or a pipe's name, with `format`."""
    dev: tuple[str, ...] = ()
    """What is evaluated on while training, in the same forms. Empty: dev_share of the training examples."""
    test: tuple[str, ...] = ()
    """What is evaluated on once, at the end."""
    dev_share: float = 0.1
    """Share of the training examples that are held out where `dev` is empty, by a hash of their content, 0 to 1."""
    format: Literal["auto", "tsv", "csv", "jsonl", "parquet", "conll", "squad"] = "auto"
    """Form of the files. "auto": by their suffix."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a TSV or CSV file that has no line with them. Empty: the first line has them."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """A row that is not what it should be: an error that names file, line and reason; or left out and counted."""
    max_length: int = 128
    """Tokens of a sequence, special ones included; longer ones are cut (or read in windows, where the task says so)."""
    max_train_examples: int | None = None
    """Only so many of the training examples, the first ones. None: all."""
    streaming: bool = False
    """Keep no training examples in memory: they are read as a stream, several times, and their tokens lie in a file without a name in
    workdir. What is trained is the same."""


@dataclasses.dataclass(frozen=True)
class FinetuneTrainConfig:
    """Length of the run and batch, and what the host does around the steps."""

    epochs: float = 3.0
    """Passes over the training examples."""
    batch_size: int = 32
    """Sequences in the global batch (choices, similarity: examples). Short ones share rows, so that they do not pay for long ones."""
    accumulation_steps: int = 1
    """Microbatches that a step is computed in; the loss and the gradient are those of one, except that dropout draws other masks."""
    evaluations: float = 1.0
    """Evaluations on dev in an epoch; there is always one at the end."""
    patience: int | None = None
    """Stop after so many evaluations in a row that are not above the best one. None: train to the end."""
    log_every: int = 20
    """Steps between two lines of metrics; each is the mean over those steps."""
    max_nonfinite_steps: int = 10
    """Steps in a row with a non-finite loss or gradient (each is skipped and counted) that stop the run."""
    prefetch: int = 2
    """Batches that wait on the device ahead of the step."""
    reinit_layers: int = 0
    """Blocks that start anew, from the highest one down (Zhang et al. 2021), and the head with them."""
    reinit_head: bool = False
    """The head starts anew, though the model was fine-tuned for the same labels before."""


FinetuneAttention = Literal["explicit", "xla", "gpu_flash", "cudnn"]
"""Backends that take rows of any length."""
LoraTarget = Literal["query", "key", "value", "attention_output", "intermediate", "feed_forward_output"]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): the encoder stays, and small matrices beside its kernels are trained.

    The task's head is trained as ever, and the pooler where the model had none. Learning rates of 1e-4 to 1e-3 are usual.
    """

    rank: int | None = None
    """Columns of A and rows of B in W + alpha / rank A B. None: no adapters, all parameters are trained."""
    alpha: float = 16.0
    """See rank."""
    targets: tuple[LoraTarget, ...] = ("query", "value")
    """The kernels of every block that have an adapter."""
    export: Literal["merged", "separate"] = "merged"
    """The run's model/: the whole model, the adapters added to its kernels; or adapters and head alone, in the format of peft."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run."""

    name: str = "finetuned"
    """Name of the run, in reports and trackers."""
    workdir: str = "runs/finetuned"
    """Folder of everything that the run writes. A folder that holds a run resumes it."""
    seed: int = 0
    """Seed of new parameters, dropout and order."""
    seeds: int = 1
    """Train so many seeds (`seed`, `seed` + 1, ...) one after another, each in WORKDIR/seed-K, and report mean and deviation."""
    search: str | None = None
    """A Python file with suggest(trial), which draws values of fields with Optuna: runs `trials` of them, and keeps the best."""
    trials: int = 20
    """Runs of a search, over all its starts."""
    model: str | None = None
    """What jaxbert.load takes: a folder, a run, or a name on the hub. None: the newest run in runs/, else a new small encoder."""
    check_data: bool = False
    """Say what the data is like (counts, labels, lengths, first examples as the model reads them), train nothing, and write nothing."""
    compare_untrained: bool = False
    """Train the same encoder from random parameters first, and report both: what the pretraining of `model` is worth."""
    dropout: float | None = None
    """Dropout of the whole encoder and of the head, 0 to 1. None: as the model's configuration says."""
    dtype: ComputeType = ModelConfig.dtype
    """Compute type. "auto": bfloat16 on GPU and TPU, float32 on CPU, where bfloat16 is faster if it has AMX (Intel's Xeon Scalable since the 4th generation)."""
    attention_backend: FinetuneAttention = "explicit"
    """Attention kernel, as in pretraining: "gpu_flash" (NVIDIA since Ampere) saves memory in long rows; "xla" and "cudnn" need dropout 0.
    A backend that cannot serve raises."""
    task: TaskConfig = ClassificationConfig()
    """The task."""
    data: ExamplesConfig = ExamplesConfig()
    """Labelled files."""
    optimizer: OptimizerConfig = OptimizerConfig(
        peak_learning_rate=5e-5, warmup_share=0.1, epsilon=1e-8, weight_decay=0.01
    )
    """The optimizer and its schedule."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adapters in place of training the encoder."""
    train: FinetuneTrainConfig = FinetuneTrainConfig()
    """Epochs and batch."""
    mesh: MeshConfig = MeshConfig()
    """The device mesh."""
    checkpoint: CheckpointConfig = CheckpointConfig(keep_last=1)
    """Checkpoints; there is one at every evaluation, and `every` is not used."""
    tracking: TrackingConfig = TrackingConfig()
    """Where metrics go."""
    distributed: DistributedConfig = DistributedConfig()
    """Several processes in one run."""
