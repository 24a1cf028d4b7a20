"""BERT-large, uncased: 24 layers, width 1024, 16 heads, 340 M parameters (Devlin et al. 2018, section 3 and appendix A.2).

    python train.py --config configs/bert_large.py --data.text 'corpus/**/*.txt.gz' --workdir runs/large --mesh.fsdp 16

The recipe of `configs/bert_base.py`. The paper trained it on 16 Cloud TPUs (64 chips) for 4 days.
"""

import dataclasses
import runpy
from pathlib import Path

from jaxbert.config import Config, ModelConfig

BASE = Path(__file__).with_name("bert_base.py")


def get_config() -> Config:
    """BERT-base's configuration with the large model."""
    base: Config = runpy.run_path(str(BASE))["get_config"]()
    model = ModelConfig(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)
    return dataclasses.replace(base, name="bert_large", workdir="runs/bert_large", model=model)
