"""BERT in JAX: from raw text to a model that people use.

The names below load their modules when they are first used: `import jaxbert` brings in neither TensorFlow nor
transformers, reads no flag and starts no backend.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxbert.config import Config as Config
    from jaxbert.config import ModelConfig as ModelConfig
    from jaxbert.config import UserError as UserError
    from jaxbert.model.bert import BertEncoder as BertEncoder
    from jaxbert.model.bert import BertForPreTraining as BertForPreTraining
    from jaxbert.run import pretrain as pretrain
    from jaxbert.tasks.pretraining import PretrainingTask as PretrainingTask
    from jaxbert.text.prepare import prepare as prepare
    from jaxbert.train.optimizer import make_optimizer as make_optimizer
    from jaxbert.train.optimizer import make_schedule as make_schedule
    from jaxbert.train.sharding import make_mesh as make_mesh
    from jaxbert.train.state import create_state as create_state
    from jaxbert.train.step import make_train_step as make_train_step
    from jaxbert.validation import validate as validate
    from jaxbert.weights.load import load as load

__version__ = "0.1.0"

_HOMES = {
    "BertEncoder": "jaxbert.model.bert",
    "BertForPreTraining": "jaxbert.model.bert",
    "Config": "jaxbert.config",
    "ModelConfig": "jaxbert.config",
    "PretrainingTask": "jaxbert.tasks.pretraining",
    "UserError": "jaxbert.config",
    "create_state": "jaxbert.train.state",
    "load": "jaxbert.weights.load",
    "make_mesh": "jaxbert.train.sharding",
    "make_optimizer": "jaxbert.train.optimizer",
    "make_schedule": "jaxbert.train.optimizer",
    "make_train_step": "jaxbert.train.step",
    "prepare": "jaxbert.text.prepare",
    "pretrain": "jaxbert.run",
    "validate": "jaxbert.validation",
}

__all__ = [
    "BertEncoder",
    "BertForPreTraining",
    "Config",
    "ModelConfig",
    "PretrainingTask",
    "UserError",
    "create_state",
    "load",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "prepare",
    "pretrain",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"jaxbert has no {name!r}; it has {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
