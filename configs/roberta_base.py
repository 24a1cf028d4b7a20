"""RoBERTa-base's recipe: no NSP, full sentences of 512 tokens, large batches (Liu et al. 2019, section 5 and table 9).

    python train.py --config configs/roberta_base.py --data.text 'corpus/**/*.txt.gz' --workdir runs/roberta --mesh.fsdp 8

500,000 steps of 8,192 rows at a peak learning rate of 6e-4. The paper used 1,024 V100 GPUs for a day per 100,000 steps.
Differs from RoBERTa: a cased WordPiece vocabulary of 50,265 is learnt; `--data.vocabulary.path tokenizer.json` takes a
byte-level BPE instead. Sequences do not cross document boundaries, and rows are packed instead.
"""

from jaxbert.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig, VocabularyConfig


def get_config() -> Config:
    """The configuration of RoBERTa-base."""
    return Config(
        name="roberta_base",
        workdir="runs/roberta_base",
        model=ModelConfig(type_vocab_size=1),
        data=DataConfig(
            pairs="none",
            max_length=512,
            short_share=0.0,
            packing=True,
            vocabulary=VocabularyConfig(size=50_265, lowercase=False),
        ),
        optimizer=OptimizerConfig(peak_learning_rate=6e-4, warmup_steps=24_000, beta2=0.98),
        train=TrainConfig(num_steps=500_000, batch_size=8192, alpha=0.0),
    )
