"""What a Predictor can be asked for, and what each needs of a model."""

from typing import Literal

from jaxbert.weights.load import Loaded

Task = Literal["fill-mask", "next-sentence", "embed", "classify", "tag", "relate", "answer", "choose"]
HEADS: dict[Task, tuple[str, ...]] = {
    "fill-mask": ("mlm",),
    "next-sentence": ("pooler", "nsp"),
    "embed": (),
    "classify": ("sequence",),
    "tag": ("token",),
    "relate": ("relation",),
    "answer": ("span",),
    "choose": ("choice",),
}
"""What a task needs beside the encoder."""
# Tasks that read the beginning of what is too long, whatever is asked for.
CUT: tuple[Task, ...] = ("classify", "relate", "choose")


def default_task(loaded: Loaded) -> Task:
    """What a model was fine-tuned for; of others, to embed where it is an embedder, else to fill masks where it can."""
    for task in ("classify", "tag", "relate", "answer", "choose"):
        if HEADS[task][0] in loaded.groups:
            return task
    return "fill-mask" if loaded.embedder is None and "mlm" in loaded.groups else "embed"
