"""`import jaxbert` in a new process, against `import jax`, which it cannot do without.

    python benchmarks/import_time.py

Processes are timed from start to end, less the time of one that imports nothing. Fails when TensorFlow or transformers came with it.
"""

import subprocess
import sys

from measure import Measurement, alternate, parser, show

LIGHT = "import sys; assert not {'tensorflow', 'transformers'} & set(sys.modules)"
OURS = {
    "import jaxbert": f"import jaxbert; {LIGHT}",
    "from jaxbert import BertForPreTraining": f"from jaxbert import BertForPreTraining; {LIGHT}",
}


def main() -> None:
    """Time each import."""
    options = parser(__doc__).parse_args()
    programs = ["pass", "import jax", *OURS.values()]
    sides = [lambda code=code: subprocess.run([sys.executable, "-c", code], check=True) for code in programs]
    start, jax, *ours = alternate(sides, 3 if options.quick else 9)
    show(
        [Measurement(name, seconds - start, jax - start, "s") for name, seconds in zip(OURS, ours, strict=True)],
        options.json,
    )


if __name__ == "__main__":
    main()
