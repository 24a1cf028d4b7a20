"""BERT-mini: 4 layers, width 256, 4 heads (Turc et al. 2019), about 11 M parameters, with BERT's recipe at length 128.

python train.py --config configs/bert_mini.py --data.text 'corpus/**/*.txt.gz' --workdir runs/mini
"""

from jaxbert.config import Config, ModelConfig, TrainConfig


def get_config() -> Config:
    """The configuration of BERT-mini."""
    return Config(
        name="bert_mini",
        workdir="runs/bert_mini",
        model=ModelConfig(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024),
        train=TrainConfig(num_steps=1_000_000, batch_size=256),
    )
