"""Fine-tune BERT on labelled files.

python finetune.py                                                    # a small built-in task, on the newest run of train.py
python finetune.py --config configs/finetune/classification.py --model path/to/minilm --data.train train.tsv --data.dev dev.tsv
python finetune.py --help                                             # every field of the configuration
"""

import os
import sys
from pathlib import Path

from jaxbert import command_line
from jaxbert.allocator import keep_freed_memory
from jaxbert.cli import one_line_errors
from jaxbert.finetune.config import FinetuneConfig

BUILTIN = Path(__file__).parent / "configs" / "finetune" / "builtin.py"


def main() -> int:
    """Run the command line; the exit status."""
    keep_freed_memory()
    with one_line_errors():
        text = "Fine-tune BERT on labelled files."
        config = command_line.parse(sys.argv[1:], lambda: command_line.load(BUILTIN, FinetuneConfig), text)
        # Imported late: --help and a misspelt field need no jax.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from jaxbert.finetune.run import finetune

        result = finetune(config)
    return 0 if result.model is not None or config.check_data else 1


if __name__ == "__main__":
    sys.exit(main())
