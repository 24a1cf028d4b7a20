"""Classify texts: Devlin et al. 2018's recipe, for any TSV, CSV or JSONL with a text and a class.

    python finetune.py --config configs/finetune/classification.py --model path/to/minilm \\
        --data.train sst2/train.tsv --data.dev sst2/dev.tsv --task.text sentence
"""

from jaxbert.finetune.config import ClassificationConfig, ExamplesConfig, FinetuneConfig


def get_config() -> FinetuneConfig:
    """Three epochs at 5e-5, batches of 32."""
    return FinetuneConfig(
        name="classification",
        workdir="runs/classification",
        task=ClassificationConfig(),
        data=ExamplesConfig(train=("train.tsv",)),
    )
