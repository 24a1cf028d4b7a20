"""Learn vectors for retrieval and similarity from pairs that belong together; with --task.target dropout from single texts.

python finetune.py --config configs/finetune/similarity.py --model path/to/minilm --data.train pairs.tsv --data.dev dev.tsv
"""

from jaxbert.finetune.config import ExamplesConfig, FinetuneConfig, FinetuneTrainConfig, SimilarityConfig


def get_config() -> FinetuneConfig:
    """Three epochs at 5e-5, batches of 64 pairs: the larger a batch, the more texts are told apart."""
    return FinetuneConfig(
        name="similarity",
        workdir="runs/similarity",
        task=SimilarityConfig(),
        data=ExamplesConfig(train=("train.tsv",)),
        train=FinetuneTrainConfig(batch_size=64),
    )
