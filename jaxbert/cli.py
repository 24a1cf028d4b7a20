"""The `jaxbert` command: what is done apart from a training run.

jaxbert prepare --config configs/bert_base.py --data.text 'corpus/**/*.txt.gz' --data.rows rows/
jaxbert convert bert_model.ckpt folder/                         # Google's checkpoint -> a Hugging Face folder
jaxbert predict --model folder/ --task fill-mask < texts > results.jsonl
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxbert.config import UserError


class Command(NamedTuple):
    """What a command is for, and the function that runs it."""

    text: str
    run: Callable[[Sequence[str], str], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: jaxbert COMMAND [OPTIONS]   (jaxbert COMMAND --help lists the options)\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<10}{command.text}")
        return 0
    with one_line_errors():
        if arguments[0] not in COMMANDS:
            raise SystemExit(f"jaxbert: no command {arguments[0]!r}; there is: {', '.join(COMMANDS)}")
        command = COMMANDS[arguments[0]]
        return command.run(arguments[1:], command.text)
    return 1


def _prepare(arguments: Sequence[str], text: str) -> int:
    from jaxbert import command_line
    from jaxbert.config import Config, ConfigError
    from jaxbert.text.prepare import prepare
    from jaxbert.validation import validate

    # What train.py takes, so that it finds the rows.
    tiny = pathlib.Path(__file__).parents[1] / "configs" / "tiny.py"
    named = any(argument.partition("=")[0] in ("--config", "--help", "-h") for argument in arguments)
    if not named and not tiny.is_file():
        raise ConfigError("jaxbert prepare needs --config FILE, the one that the training will have")
    config = command_line.parse(arguments, lambda: command_line.load(tiny) if tiny.is_file() else Config(), text)
    validate(config)
    prepared = prepare(config, on_progress=print, verify="hash")
    for (split, length), store in prepared.stores.items():
        print(f"{split} rows of {length} tokens: {store}")
    return 0


def _convert(arguments: Sequence[str], text: str) -> int:
    import tyro

    from jaxbert.weights.convert_command import ConvertOptions, run

    run(tyro.cli(ConvertOptions, args=list(arguments), prog="jaxbert convert", description=text))
    return 0


def _predict(arguments: Sequence[str], text: str) -> int:
    from jaxbert.allocator import keep_freed_memory

    keep_freed_memory()
    import tyro

    from jaxbert.predict.stream import PredictOptions, predict

    predict(tyro.cli(PredictOptions, args=list(arguments), prog="jaxbert predict", description=text))
    return 0


COMMANDS: Mapping[str, Command] = {
    "prepare": Command(
        "Turn raw text into a vocabulary and rows of token ids; train.py with the same --config and settings uses them.",
        _prepare,
    ),
    "convert": Command("Write anyone's checkpoint as a Hugging Face, TensorFlow or Flax one.", _convert),
    "predict": Command("Classify, tag, answer, fill masks, embed, ...: lines of text in, lines of JSON out.", _predict),
}


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error that is about the user's input as its own text, without a traceback, and exit with status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        # Whoever read the output has enough. Python would complain again when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        # A full disk, a folder that may not be written, a file that went away: the text names it.
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
