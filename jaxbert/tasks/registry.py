"""The task that a configuration asks for."""

from typing import Any

from jaxbert.finetune.config import ClassificationConfig, TaskConfig
from jaxbert.tasks.task import Task


def make_task(config: TaskConfig) -> Task[Any, Any]:
    """The task with these settings."""
    from jaxbert.tasks.classification import Classification

    if isinstance(config, ClassificationConfig):
        return Classification(config)
    raise NotImplementedError(config.kind)
