"""The head that a fine-tuning run starts with: that of a model that was fine-tuned before, where it fits the task, else a new one."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbert.finetune.config import FinetuneConfig
from jaxbert.finetune.source import Source
from jaxbert.model.heads import CLASSIFIER
from jaxbert.tasks.task import BoundTask, some
from jaxbert.train.sharding import unbox


class Head(NamedTuple):
    """What a run starts with."""

    params: Mapping[str, Any]
    """By group, as in the task's own parameters. Empty: a new head."""
    why_new: str = ""
    """Why the head that there is does not serve, to follow "starts anew: "."""


def find_head(config: FinetuneConfig, source: Source, task: BoundTask[Any, Any]) -> Head:
    """The head of `source`, its outputs in the order of the task's labels, where it is of the task's kind and has its labels."""
    if source.params is None or not source.heads:
        return Head({})
    shapes = unbox(jax.eval_shape(task.init, jax.random.key(0)))
    head = {name: tree for name, tree in source.heads.items() if name in shapes}
    if not head:
        return Head({})
    if why := _unwanted(config) or _other(source, task):
        return Head({}, why)
    if "pooler" in shapes and "pooler" not in source.params:
        return Head({}, "it came without the pooler under it")
    if _names_matter(task):
        order = [source.labels.index(label) for label in task.labels]
        head = {name: _reordered(tree, order) for name, tree in head.items()}
    sizes = [jax.tree.map(np.shape, tree) for tree in (head, {name: shapes[name] for name in head})]
    return Head(head) if sizes[0] == sizes[1] else Head({}, "it has other sizes than the task's")


def _unwanted(config: FinetuneConfig) -> str:
    if config.train.reinit_head:
        return "train.reinit_head asks for it"
    return "train.reinit_layers has blocks under it start anew" if config.train.reinit_layers else ""


def _other(source: Source, task: BoundTask[Any, Any]) -> str:
    """How what it was trained for differs from the task."""
    before, now = source.extra.get("problem_type"), task.configuration().get("problem_type")
    if isinstance(before, str) and now and before != now:
        return f"it is of a {before.replace('_', ' ')}, and the task is a {now.replace('_', ' ')}"
    if not _names_matter(task) or sorted(source.labels) == sorted(task.labels):
        return ""
    if source.labels == tuple(f"LABEL_{n}" for n in range(len(task.labels))):
        return "its labels have no names: where they are the task's, name them in id2label of its config.json"
    return f"its labels are not the task's ({_difference(source.labels, task.labels)})"


def _names_matter(task: BoundTask[Any, Any]) -> bool:
    return task.labels_are_outputs and task.configuration().get("problem_type") != "regression"


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    alone = {"it has": [x for x in theirs if x not in ours], "the task has": [x for x in ours if x not in theirs]}
    return "; ".join(f"{who} {some(labels)}" for who, labels in alone.items() if labels) or "one of them is there twice"


def _reordered(head: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The head with the outputs of its last layer in another order."""
    last = {name: np.asarray(array)[..., list(order)] for name, array in head[CLASSIFIER].items()}
    return {**head, CLASSIFIER: last}
