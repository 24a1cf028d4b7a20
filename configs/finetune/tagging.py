"""Tag named entities: CoNLL columns, or JSONL with spans in characters.

    python finetune.py --config configs/finetune/tagging.py --model path/to/minilm \\
        --data.train wnut17/wnut17train.conll --data.dev wnut17/emerging.dev.conll
"""

from jaxbert.finetune.config import ExamplesConfig, FinetuneConfig, TaggingConfig


def get_config() -> FinetuneConfig:
    """Three epochs at 5e-5, batches of 32."""
    return FinetuneConfig(
        name="tagging",
        workdir="runs/tagging",
        task=TaggingConfig(),
        data=ExamplesConfig(train=("train.conll",)),
    )
