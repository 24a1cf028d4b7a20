"""The task that a configuration asks for."""

from collections.abc import Callable
from typing import Any

from jaxbert.config import ConfigError
from jaxbert.finetune.config import (
    ChoiceConfig,
    ClassificationConfig,
    RelationConfig,
    SimilarityConfig,
    SpanConfig,
    TaggingConfig,
    TaskConfig,
)
from jaxbert.tasks.choice import MultipleChoice
from jaxbert.tasks.classification import Classification
from jaxbert.tasks.relation import Relation
from jaxbert.tasks.similarity import Similarity
from jaxbert.tasks.span import SpanAnswering
from jaxbert.tasks.tagging import Tagging
from jaxbert.tasks.task import Task


def make_task(config: TaskConfig) -> Task[Any, Any]:
    """The task with these settings: one of ours, or what the `make_task` of somebody's own settings makes."""
    make: Callable[[], Task[Any, Any]] | None = getattr(config, "make_task", None)
    if make is not None:
        return make()
    if isinstance(config, TaggingConfig):
        return Tagging(config)
    if isinstance(config, RelationConfig):
        return Relation(config)
    if isinstance(config, SpanConfig):
        return SpanAnswering(config)
    if isinstance(config, ChoiceConfig):
        return MultipleChoice(config)
    if isinstance(config, SimilarityConfig):
        return Similarity(config)
    if isinstance(config, ClassificationConfig):
        return Classification(config)
    raise ConfigError(f"{type(config).__name__} makes no task: give it a method make_task")
