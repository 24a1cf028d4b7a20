"""BERT-small: 4 layers, width 512, 8 heads (Turc et al. 2019), about 29 M parameters, with BERT's recipe at length 128.

python train.py --config configs/bert_small.py --data.text 'corpus/**/*.txt.gz' --workdir runs/small
"""

from jaxbert.config import Config, ModelConfig, TrainConfig


def get_config() -> Config:
    """The configuration of BERT-small."""
    return Config(
        name="bert_small",
        workdir="runs/bert_small",
        model=ModelConfig(hidden_size=512, num_layers=4, num_heads=8, intermediate_size=2048),
        train=TrainConfig(num_steps=1_000_000, batch_size=256),
    )
