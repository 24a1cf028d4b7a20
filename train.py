"""Pretrain BERT from raw text.

python train.py                                                       # a small BERT on the built-in corpus
python train.py --config configs/bert_base.py --data.text 'corpus/**/*.txt.gz' --workdir runs/base
python train.py --help                                                # every field of the configuration
"""

import os
import sys
from pathlib import Path

from jaxbert import command_line
from jaxbert.allocator import keep_freed_memory
from jaxbert.cli import one_line_errors

TINY = Path(__file__).parent / "configs" / "tiny.py"


def main() -> int:
    """Run the command line; the exit status."""
    keep_freed_memory()
    with one_line_errors():
        config = command_line.parse(sys.argv[1:], lambda: command_line.load(TINY), "Pretrain BERT from raw text.")
        # TensorFlow makes batches here and nothing else: its notes on CPU instructions and oneDNN help nobody.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        # Imported late: --help and a misspelt field need neither jax nor TensorFlow.
        from jaxbert.run import pretrain

        result = pretrain(config)
    return 0 if result.finished else 1


if __name__ == "__main__":
    sys.exit(main())
