"""Answer questions with a span of their context: SQuAD 1.1 and 2.0, and CMRC (with --task.characters).

python finetune.py --config configs/finetune/span.py --model path/to/bert --data.train train-v1.1.json --data.dev dev-v1.1.json
"""

from jaxbert.finetune.config import ExamplesConfig, FinetuneConfig, FinetuneTrainConfig, SpanConfig


def get_config() -> FinetuneConfig:
    """Two epochs at 5e-5, batches of 32 windows of 384 tokens."""
    return FinetuneConfig(
        name="span",
        workdir="runs/span",
        task=SpanConfig(),
        data=ExamplesConfig(train=("train.json",), max_length=384),
        train=FinetuneTrainConfig(epochs=2),
    )
