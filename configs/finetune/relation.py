"""Classify the relation between two marked entities, as in SemEval-2010 Task 8.

    python finetune.py --config configs/finetune/relation.py --model path/to/minilm \\
        --data.train semeval2010-task8/train.tsv --data.dev semeval2010-task8/test.tsv --data.columns label text
"""

from jaxbert.finetune.config import ExamplesConfig, FinetuneConfig, RelationConfig


def get_config() -> FinetuneConfig:
    """Three epochs at 5e-5, batches of 32."""
    return FinetuneConfig(
        name="relation",
        workdir="runs/relation",
        task=RelationConfig(),
        data=ExamplesConfig(train=("train.tsv",)),
    )
