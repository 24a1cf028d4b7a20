"""The default: a small BERT on the built-in corpus, in under five minutes on two CPU cores, installation aside.

    python train.py

Reaches 15.3 % held-out MLM accuracy (a guesser of the most frequent token: 5.4 %) and 73.6 % NSP accuracy after 2,600 steps, which took
3 to 4.5 minutes as the machine was quiet or busy.

At this budget, a few million tokens, speed counts more than size: width 128 reached 13.5 % in nearly twice the processor time, a vocabulary
of 8,192 or batches of 4 or 32 rows less. An initializer range of 0.1 serves a width of 64 as BERT's 0.02 serves 768. Two devices on one CPU
keep both cores at work where XLA would use one.
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
        optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=200, beta2=0.98),
        train=TrainConfig(num_steps=2600, batch_size=16, log_every=50, evaluate_every=500, evaluate_batches=0),
        checkpoint=CheckpointConfig(every=500),
        mesh=MeshConfig(cpu_devices=2),
    )
