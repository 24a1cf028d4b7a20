"""BERT-base, uncased: 12 layers, width 768, 12 heads, 110 M parameters (Devlin et al. 2018, section 3 and appendix A.2).

    python train.py --config configs/bert_base.py --data.text 'corpus/**/*.txt.gz' --workdir runs/base

1,000,000 steps of 256 rows at a peak learning rate of 1e-4, warmed up over 10,000 steps and decayed linearly:
90 % of the steps at length 128, the last 10 % at 512. The paper trained it on 4 Cloud TPUs (16 chips) for 4 days.
"""

from jaxbert.config import Config, LongPhase, TrainConfig


def get_config() -> Config:
    """The configuration of BERT-base; `ModelConfig` and `OptimizerConfig` have its values as their defaults."""
    return Config(
        name="bert_base",
        workdir="runs/bert_base",
        train=TrainConfig(
            num_steps=1_000_000,
            batch_size=256,
            # The published predictions per row: 20 of 128 and 77 of 512 tokens, 15 % rounded up.
            long_phase=LongPhase(num_steps=100_000, max_length=512),
        ),
    )
