"""The default: a small BERT on the built-in corpus, in minutes on two CPU cores.

python train.py
"""

from jaxbert.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    VocabularyConfig,
)


def get_config() -> Config:
    """The configuration that `python train.py` runs."""
    return Config(
        name="tiny",
        workdir="runs/tiny",
        model=ModelConfig(
            hidden_size=128,
            num_layers=2,
            num_heads=2,
            intermediate_size=512,
            max_position_embeddings=128,
            hidden_dropout=0.0,
            attention_dropout=0.0,
        ),
        data=DataConfig(packing=True, vocabulary=VocabularyConfig(size=8192)),
        optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=200),
        train=TrainConfig(num_steps=2000, batch_size=32, log_every=50, evaluate_every=500, evaluate_batches=0),
        checkpoint=CheckpointConfig(every=500),
    )
