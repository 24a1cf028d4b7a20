"""BERT-medium: 8 layers, width 512, 8 heads (Turc et al. 2019), about 41 M parameters, with BERT's recipe at length 128.

python train.py --config configs/bert_medium.py --data.text 'corpus/**/*.txt.gz' --workdir runs/medium
"""

from jaxbert.config import Config, ModelConfig, TrainConfig


def get_config() -> Config:
    """The configuration of BERT-medium."""
    return Config(
        name="bert_medium",
        workdir="runs/bert_medium",
        model=ModelConfig(hidden_size=512, num_layers=8, num_heads=8, intermediate_size=2048),
        train=TrainConfig(num_steps=1_000_000, batch_size=256),
    )
