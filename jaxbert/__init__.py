"""BERT in JAX: from raw text to a model that people use.

The names below load their modules when they are first used: `import jaxbert` brings in neither TensorFlow nor
transformers, reads no flag and starts no backend.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxbert.config import Config as Config
    from jaxbert.config import MaskingConfig as MaskingConfig
    from jaxbert.config import MeshConfig as MeshConfig
    from jaxbert.config import ModelConfig as ModelConfig
    from jaxbert.config import OptimizerConfig as OptimizerConfig
    from jaxbert.config import UserError as UserError
    from jaxbert.data.masking import mask_batch as mask_batch
    from jaxbert.finetune.config import FinetuneConfig as FinetuneConfig
    from jaxbert.model.attention import attend as attend
    from jaxbert.model.bert import BertEncoder as BertEncoder
    from jaxbert.model.bert import BertForMaskedLM as BertForMaskedLM
    from jaxbert.model.bert import BertForNextSentencePrediction as BertForNextSentencePrediction
    from jaxbert.model.bert import BertForPreTraining as BertForPreTraining
    from jaxbert.model.classifiers import BertForMultipleChoice as BertForMultipleChoice
    from jaxbert.model.classifiers import BertForQuestionAnswering as BertForQuestionAnswering
    from jaxbert.model.classifiers import BertForRelationClassification as BertForRelationClassification
    from jaxbert.model.classifiers import BertForSentenceEmbedding as BertForSentenceEmbedding
    from jaxbert.model.classifiers import BertForSequenceClassification as BertForSequenceClassification
    from jaxbert.model.classifiers import BertForTokenClassification as BertForTokenClassification
    from jaxbert.model.encoder import Pooler as Pooler
    from jaxbert.model.heads import MlmHead as MlmHead
    from jaxbert.model.heads import NspHead as NspHead
    from jaxbert.model.heads import SequenceHead as SequenceHead
    from jaxbert.model.heads import SpanHead as SpanHead
    from jaxbert.model.heads import TokenHead as TokenHead
    from jaxbert.predict.predictor import Predictor as Predictor
    from jaxbert.predict.texts import open_tokenizer as open_tokenizer
    from jaxbert.run import pretrain as pretrain
    from jaxbert.tasks.pretraining import PretrainingTask as PretrainingTask
    from jaxbert.text.instances import make_full_sentences as make_full_sentences
    from jaxbert.text.instances import make_pairs as make_pairs
    from jaxbert.text.prepare import prepare as prepare
    from jaxbert.train.losses import masked_accuracy as masked_accuracy
    from jaxbert.train.losses import masked_cross_entropy as masked_cross_entropy
    from jaxbert.train.optimizer import make_optimizer as make_optimizer
    from jaxbert.train.optimizer import make_schedule as make_schedule
    from jaxbert.train.sharding import RULES as RULES
    from jaxbert.train.sharding import make_mesh as make_mesh
    from jaxbert.train.sharding import put_batch as put_batch
    from jaxbert.train.sharding import state_shardings as state_shardings
    from jaxbert.train.state import Task as Task
    from jaxbert.train.state import TrainState as TrainState
    from jaxbert.train.state import create_state as create_state
    from jaxbert.train.state import with_params as with_params
    from jaxbert.train.step import make_eval_step as make_eval_step
    from jaxbert.train.step import make_train_step as make_train_step
    from jaxbert.train.step import train_step as train_step
    from jaxbert.validation import validate as validate
    from jaxbert.weights.convert import convert as convert
    from jaxbert.weights.load import Loaded as Loaded
    from jaxbert.weights.load import load as load

__version__ = "0.1.0"

_HOMES = {
    "BertEncoder": "jaxbert.model.bert",
    "BertForMaskedLM": "jaxbert.model.bert",
    "BertForMultipleChoice": "jaxbert.model.classifiers",
    "BertForNextSentencePrediction": "jaxbert.model.bert",
    "BertForPreTraining": "jaxbert.model.bert",
    "BertForQuestionAnswering": "jaxbert.model.classifiers",
    "BertForRelationClassification": "jaxbert.model.classifiers",
    "BertForSentenceEmbedding": "jaxbert.model.classifiers",
    "BertForSequenceClassification": "jaxbert.model.classifiers",
    "BertForTokenClassification": "jaxbert.model.classifiers",
    "Config": "jaxbert.config",
    "FinetuneConfig": "jaxbert.finetune.config",
    "Loaded": "jaxbert.weights.load",
    "MaskingConfig": "jaxbert.config",
    "MeshConfig": "jaxbert.config",
    "MlmHead": "jaxbert.model.heads",
    "ModelConfig": "jaxbert.config",
    "NspHead": "jaxbert.model.heads",
    "OptimizerConfig": "jaxbert.config",
    "Pooler": "jaxbert.model.encoder",
    "Predictor": "jaxbert.predict.predictor",
    "PretrainingTask": "jaxbert.tasks.pretraining",
    "RULES": "jaxbert.train.sharding",
    "SequenceHead": "jaxbert.model.heads",
    "SpanHead": "jaxbert.model.heads",
    "Task": "jaxbert.train.state",
    "TokenHead": "jaxbert.model.heads",
    "TrainState": "jaxbert.train.state",
    "UserError": "jaxbert.config",
    "attend": "jaxbert.model.attention",
    "convert": "jaxbert.weights.convert",
    "create_state": "jaxbert.train.state",
    "load": "jaxbert.weights.load",
    "make_eval_step": "jaxbert.train.step",
    "make_full_sentences": "jaxbert.text.instances",
    "make_mesh": "jaxbert.train.sharding",
    "make_optimizer": "jaxbert.train.optimizer",
    "make_pairs": "jaxbert.text.instances",
    "make_schedule": "jaxbert.train.optimizer",
    "make_train_step": "jaxbert.train.step",
    "mask_batch": "jaxbert.data.masking",
    "masked_accuracy": "jaxbert.train.losses",
    "masked_cross_entropy": "jaxbert.train.losses",
    "open_tokenizer": "jaxbert.predict.texts",
    "prepare": "jaxbert.text.prepare",
    "pretrain": "jaxbert.run",
    "put_batch": "jaxbert.train.sharding",
    "state_shardings": "jaxbert.train.sharding",
    "train_step": "jaxbert.train.step",
    "validate": "jaxbert.validation",
    "with_params": "jaxbert.train.state",
}

__all__ = [
    "RULES",
    "BertEncoder",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForRelationClassification",
    "BertForSentenceEmbedding",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "Config",
    "FinetuneConfig",
    "Loaded",
    "MaskingConfig",
    "MeshConfig",
    "MlmHead",
    "ModelConfig",
    "NspHead",
    "OptimizerConfig",
    "Pooler",
    "Predictor",
    "PretrainingTask",
    "SequenceHead",
    "SpanHead",
    "Task",
    "TokenHead",
    "TrainState",
    "UserError",
    "attend",
    "convert",
    "create_state",
    "load",
    "make_eval_step",
    "make_full_sentences",
    "make_mesh",
    "make_optimizer",
    "make_pairs",
    "make_schedule",
    "make_train_step",
    "mask_batch",
    "masked_accuracy",
    "masked_cross_entropy",
    "open_tokenizer",
    "prepare",
    "pretrain",
    "put_batch",
    "state_shardings",
    "train_step",
    "validate",
    "with_params",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"jaxbert has no {name!r}; it has {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
