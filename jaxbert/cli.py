"""The `jaxbert` command: what is done apart from a training run.

jaxbert prepare --config configs/bert_base.py --data.text 'corpus/**/*.txt.gz' --data.rows rows/
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from jaxbert.config import UserError

COMMANDS = {
    "prepare": "Turn raw text into a vocabulary and rows of token ids; train.py with the same --config and settings uses them."
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: jaxbert COMMAND [OPTIONS]   (jaxbert COMMAND --help lists the options)\n")
        for name, text in COMMANDS.items():
            print(f"  {name:<10}{text}")
        return 0
    with one_line_errors():
        if arguments[0] not in COMMANDS:
            raise SystemExit(f"jaxbert: no command {arguments[0]!r}; there is: {', '.join(COMMANDS)}")
        return _prepare(arguments[1:])
    return 1


def _prepare(arguments: Sequence[str]) -> int:
    from jaxbert import command_line
    from jaxbert.config import Config
    from jaxbert.text.prepare import prepare
    from jaxbert.validation import validate

    config = command_line.parse(arguments, Config, COMMANDS["prepare"])
    validate(config)
    prepared = prepare(config, on_progress=print, verify="hash")
    for (split, length), store in prepared.stores.items():
        print(f"{split} rows of {length} tokens: {store}")
    return 0


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error that is about the user's input as its own text, without a traceback, and exit with status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        # A full disk, a folder that may not be written, a file that went away: the text names it.
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
