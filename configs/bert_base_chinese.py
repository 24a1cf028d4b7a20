"""BERT-base, Chinese: BERT-base with a vocabulary of 21,128, in which every CJK character is a token.

    pip install 'jaxbert[chinese]'
    python train.py --config configs/bert_base_chinese.py --data.text 'corpus/**/*.txt.gz' --workdir runs/chinese

Differs from BERT: masks whole Chinese words as jieba segments them (Cui et al. 2019). The published model masks single
characters: `--masking.unit token --data.segmenter vocabulary`, which does without the extra.
"""

import dataclasses
import runpy
from pathlib import Path

from jaxbert.config import Config, MaskingConfig, VocabularyConfig

BASE = Path(__file__).with_name("bert_base.py")


def get_config() -> Config:
    """BERT-base's configuration with the Chinese vocabulary and whole-word masking."""
    base: Config = runpy.run_path(str(BASE))["get_config"]()
    vocabulary = VocabularyConfig(size=21_128, alphabet_limit=15_000)
    return dataclasses.replace(
        base,
        name="bert_base_chinese",
        workdir="runs/bert_base_chinese",
        data=dataclasses.replace(base.data, vocabulary=vocabulary, segmenter="jieba"),
        masking=MaskingConfig(unit="word"),
    )
