"""What a pretraining run ends with: a table beside its baselines, a picture of the curves, and fill-mask examples."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from tokenizers import Tokenizer

from jaxbert.train.tracking import read_metrics

# The arrays of one masked batch, by name.
Arrays = dict[str, np.ndarray]
# A row to predict in has these arrays, in the order in which the model takes them.
ROW = ("input_ids", "token_type_ids", "sequence_ids", "position_ids", "mlm_positions")
# ROW's arrays -> probabilities over the vocabulary at mlm_positions
Predict = Callable[[Arrays], Float[np.ndarray, "B P V"]]

NUM_EXAMPLES = 5
NUM_CANDIDATES = 5
# An example hides a word of at least this many letters: "the" and "of" show little.
MIN_LETTERS = 4


@dataclasses.dataclass(frozen=True)
class Baselines:
    """What guessing reaches on the same held-out targets."""

    mlm_loss: float
    """Nats per target of a guesser that knows the training tokens' frequencies and nothing else."""
    mlm_accuracy: float
    """Share of the targets that are the most frequent training token, 0 to 1."""
    nsp_accuracy: float = 0.5
    """A coin's."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A held-out sentence with one word hidden, and what the model puts there."""

    sentence: str
    answer: str
    candidates: tuple[tuple[str, float], ...]
    """(token, probability), the likeliest first."""


def unigram_baselines(
    token_counts: Int[np.ndarray, " V"], special_ids: Sequence[int], batches: Iterable[Arrays]
) -> Baselines:
    """Baselines over the masked targets of `batches`, from the counts of the training tokens.

    Every token of the vocabulary that is not special counts once more than it was seen, so that none is impossible.
    """
    counts = token_counts.astype(np.float64) + 1
    counts[list(special_ids)] = 0
    with np.errstate(divide="ignore"):
        log_probability = np.log(counts / counts.sum())
    likeliest = int(counts.argmax())
    loss = correct = total = 0.0
    for batch in batches:
        labels = batch["mlm_labels"][batch["mlm_weights"] > 0]
        loss -= log_probability[labels].sum()
        correct += (labels == likeliest).sum()
        total += labels.size
    if total == 0:
        return Baselines(math.nan, math.nan)
    return Baselines(float(loss / total), float(correct / total))


def read_samples(path: Path) -> list[str]:
    """The held-out sentences that preparation put aside for examples."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf8").splitlines()]


def _perplexity(loss: float) -> str:
    # Beyond, exp is more than a float holds; NaN stays NaN.
    return "over 1e300" if loss > 690 else f"{math.exp(loss):.1f}"


def table(metrics: dict[str, float], baselines: Baselines) -> list[tuple[str, str, str]]:
    """Rows of (measure, the model's, a guesser's) for the held-out documents; NSP rows only where there is NSP."""
    # A name is missing where nothing of its kind was in the held-out rows.
    metrics = {"mlm_loss": math.nan, "mlm_accuracy": math.nan} | metrics
    rows = [
        ("held-out MLM loss", f"{metrics['mlm_loss']:.3f}", f"{baselines.mlm_loss:.3f}"),
        ("held-out MLM perplexity", _perplexity(metrics["mlm_loss"]), _perplexity(baselines.mlm_loss)),
        ("held-out MLM accuracy", f"{metrics['mlm_accuracy']:.1%}", f"{baselines.mlm_accuracy:.1%}"),
    ]
    if not math.isnan(metrics.get("nsp_accuracy", math.nan)):
        rows.append(("held-out NSP accuracy", f"{metrics['nsp_accuracy']:.1%}", f"{baselines.nsp_accuracy:.1%}"))
    return rows


def fill_mask_examples(
    sentences: Iterable[str], tokenizer: Tokenizer, mask_id: int, predict: Predict, length: int
) -> list[Example]:
    """Hide one word in each of the first `NUM_EXAMPLES` suitable sentences and let the model fill it.

    `predict` gets one row of `length` tokens with one masked position.
    The choice of the word depends on the sentence alone, so that the same corpus shows the same examples.
    """
    examples = []
    for sentence in sentences:
        encoding = tokenizer.encode(sentence)
        hidden = _hidden_position(encoding)
        if hidden is None or len(encoding.ids) > length:
            continue
        row = {name: np.zeros((1, length), np.int32) for name in ROW[:3]}
        row["input_ids"][0, : len(encoding.ids)] = encoding.ids
        row["input_ids"][0, hidden] = mask_id
        row["sequence_ids"][0, : len(encoding.ids)] = 1
        row["position_ids"] = np.arange(length, dtype=np.int32)[None]
        row["mlm_positions"] = np.full((1, 1), hidden, np.int32)
        probability = predict(row)[0, 0]
        best = np.argsort(-probability)[:NUM_CANDIDATES]
        start, end = encoding.offsets[hidden]
        examples.append(
            Example(
                sentence=f"{sentence[:start]}[MASK]{sentence[end:]}",
                answer=sentence[start:end],
                candidates=tuple((tokenizer.id_to_token(int(i)) or "", float(probability[i])) for i in best),
            )
        )
        if len(examples) == NUM_EXAMPLES:
            break
    return examples


def _hidden_position(encoding) -> int | None:
    """The longest word that is one token; None where no word is long enough."""
    words = encoding.word_ids
    best, best_length = None, MIN_LETTERS - 1
    for position, word in enumerate(words):
        if word is None or words.count(word) > 1:
            continue
        token = encoding.tokens[position]
        letters = len(token) if token.isalpha() else 0
        # A CJK character is a word by itself.
        letters = max(letters, MIN_LETTERS) if token.isalpha() and ord(token[0]) >= 0x2E80 else letters
        if letters > best_length:
            best, best_length = position, letters
    return best


def draw_curves(metrics_file: Path, picture: Path, baselines: Baselines) -> None:
    """Draw loss and accuracies over the steps, training and held-out beside the baselines, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(metrics_file)
    # Not pyplot: it keeps global state and looks for a display.
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("mlm_loss", "MLM loss (nats)", baselines.mlm_loss, "unigram"),
        ("mlm_accuracy", "MLM accuracy", baselines.mlm_accuracy, "unigram"),
        ("nsp_accuracy", "NSP accuracy", baselines.nsp_accuracy, "coin"),
    )
    for axes, (name, title, baseline, guesser) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for split, style in (("train", {"alpha": 0.6}), ("heldout", {"marker": "o", "markersize": 3})):
            points = [(r["step"], r[name]) for r in records if r["split"] == split and r.get(name) is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True), label={"train": "training", "heldout": "held out"}[split], **style
                )
        if not math.isnan(baseline):
            axes.axhline(baseline, color="gray", linestyle="--", linewidth=1, label=guesser)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(picture, dpi=120)


def to_markdown(
    name: str, facts: Sequence[tuple[str, str]], rows: Sequence[tuple[str, str, str]], examples: Sequence[Example]
) -> str:
    """The report as a Markdown page that shows `curves.png` beside it."""
    lines = [f"# {name}", "", "| on documents it never trained on | this model | guessing |", "|---|---:|---:|"]
    lines += [f"| {measure} | {ours} | {guess} |" for measure, ours, guess in rows]
    lines += ["", "![curves](curves.png)", "", "| run | |", "|---|---|"]
    lines += [f"| {fact} | {value} |" for fact, value in facts]
    lines += ["", "## Fill-mask on held-out sentences", ""]
    for example in examples:
        guesses = ", ".join(f"{token} {probability:.0%}" for token, probability in example.candidates)
        lines += [f"- {example.sentence}", f"  - hidden: **{example.answer}**; the model says: {guesses}"]
    return "\n".join(lines) + "\n"


def show(rows: Sequence[tuple[str, str, str]], examples: Sequence[Example]) -> None:
    """Print the table and the examples to the console."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    grid = Table("on documents it never trained on", "this model", "guessing")
    for column in grid.columns[1:]:
        column.justify = "right"
    for row in rows:
        grid.add_row(*row)
    console.print(grid)
    if examples:
        console.print("Fill-mask on held-out sentences")
    for example in examples:
        # Text, not markup: a sentence may hold square brackets of its own.
        console.print(Text(f"  {example.sentence}"))
        guesses = ", ".join(f"{token} {probability:.0%}" for token, probability in example.candidates)
        console.print(Text(f"    hidden: {example.answer}; the model says: {guesses}"))
