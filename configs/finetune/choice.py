"""Choose the right one of several continuations: SWAG's columns, as JSONL or CSV.

python finetune.py --config configs/finetune/choice.py --model path/to/bert --data.train train.csv --data.dev val.csv
"""

from jaxbert.finetune.config import ChoiceConfig, ExamplesConfig, FinetuneConfig


def get_config() -> FinetuneConfig:
    """Three epochs at 5e-5, batches of 32 examples."""
    return FinetuneConfig(
        name="choice",
        workdir="runs/choice",
        task=ChoiceConfig(),
        data=ExamplesConfig(train=("train.jsonl",)),
    )
