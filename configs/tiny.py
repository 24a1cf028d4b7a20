"""The default: a small BERT on the built-in corpus, in under five minutes on two CPU cores, installation aside.

    python train.py

Reaches @@FIGURE@@

At this budget (a few million tokens) speed counts more than size. What was tried at equal CPU time: width 128 instead of 64,
vocabularies of 8,192, batches of 4, 8 and 32 rows, four times fewer heads' width; each ended lower. An initializer range of 0.1
instead of BERT's 0.02 (which is meant for a width of 768) lets attention get going hundreds of steps earlier.
"""

from jaxbert.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    MeshConfig,
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
            hidden_size=64,
            num_layers=2,
            num_heads=2,
            intermediate_size=256,
            max_position_embeddings=128,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            initializer_range=0.1,
        ),
        data=DataConfig(packing=True, vocabulary=VocabularyConfig(size=4096)),
        optimizer=OptimizerConfig(peak_learning_rate=4e-3, warmup_steps=200, beta2=0.98),
        train=TrainConfig(num_steps=2800, batch_size=16, log_every=50, evaluate_every=400, evaluate_batches=0),
        checkpoint=CheckpointConfig(every=400),
        mesh=MeshConfig(cpu_devices=2),
    )
