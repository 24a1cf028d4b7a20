"""The default of finetune.py: which package a docstring comes from, on the newest run of train.py, with and without its pretraining.

python finetune.py
"""

from jaxbert.config import MeshConfig, OptimizerConfig
from jaxbert.finetune.config import ClassificationConfig, FinetuneConfig, FinetuneTrainConfig


def get_config() -> FinetuneConfig:
    """The configuration that `python finetune.py` runs."""
    return FinetuneConfig(
        name="builtin",
        workdir="runs/finetuned",
        compare_untrained=True,
        task=ClassificationConfig(),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_share=0.1, epsilon=1e-8),
        train=FinetuneTrainConfig(epochs=3),
        mesh=MeshConfig(cpu_devices=2),
    )
