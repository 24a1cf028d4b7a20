"""What a fine-tuning run ends with: report.md and report.json, learning curves, a confusion matrix, and the worst mistakes."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.tasks.task import BoundTask, Mistake, Table
from jaxbert.train.tracking import read_metrics

# Mistakes that the report shows, and characters of each.
_SHOWN, _LONGEST = 20, 300
# More classes than this are no picture, nor are longer names, of which a character takes so many inches.
_MOST_CLASSES, _LONGEST_NAME, _INCHES = 80, 60, 0.13

Split = tuple[Sequence[Any], Mapping[str, float], Sequence[Any]]
"""Examples, measures, predictions."""


def write(
    workdir: Path,
    name: str,
    task: BoundTask[Any, Any],
    splits: Mapping[str, Split],
    *,
    untrained: Mapping[str, float],
    facts: Mapping[str, str],
    warnings: Sequence[str],
) -> None:
    """Write the report of a run into its folder, and print its table of measures.

    `splits`: "dev", and "test" where there is one; the last is what tables, confusion and mistakes are of. `untrained`: measures on
    dev of the same model without pretraining; empty where that was not asked for.
    """
    last = list(splits)[-1]
    examples, _, predictions = splits[last]
    tables = list(task.tables(examples, predictions))
    mistakes = sorted(task.mistakes(examples, predictions), key=lambda mistake: -mistake.loss)
    confusion = task.confusion(examples, predictions)
    pictures = {"curves.png": "learning curves"}
    draw_curves(workdir / "metrics.jsonl", workdir / "curves.png", task.metric)
    if confusion is not None and len(confusion[0]) > _MOST_CLASSES:
        warnings = [*warnings, f"no confusion.png: {len(confusion[0])} classes are too many for a picture"]
    elif confusion is not None:
        names = list(confusion[0])
        if not all(map(_can_be_drawn, names)):
            names = [str(number) for number in range(len(names))]
            key = [[number, name] for number, name in zip(names, confusion[0], strict=True)]
            tables.append(Table("Numbers in confusion.png", ("", "class"), key))
        draw_confusion(workdir / "confusion.png", names, confusion[1])
        pictures["confusion.png"] = f"confusion matrix of {last}"
    # A term that is alone is the loss again.
    again = set(task.loss_weights) if [*task.loss_weights.values()] == [1.0] else set()
    measures = _measures(splits, untrained, again)
    page = _page(name, measures, facts, warnings, tables, mistakes[:_SHOWN], pictures, last, task.ranked_by)
    (workdir / "report.md").write_text(page, encoding="utf8")
    content = {
        "name": name,
        "metric": task.metric,
        "measures": {split: dict(found) for split, (_, found, _) in splits.items()},
        "untrained": dict(untrained),
        "facts": dict(facts),
        "warnings": list(warnings),
        "tables": [{"title": t.title, "columns": list(t.columns), "rows": [list(r) for r in t.rows]} for t in tables],
        "confusion": None
        if confusion is None
        else {"labels": list(confusion[0]), "counts": np.asarray(confusion[1]).tolist()},
        "mistakes": {"count": len(mistakes), "worst": [mistake._asdict() for mistake in mistakes[:_SHOWN]]},
    }
    write_json(workdir / "report.json", content)
    show(measures)


def write_json(file: Path, content: Any) -> None:
    """Write a report for programs. A number that is not finite is written as null, since JSON has no name for it."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    file.write_text(text, encoding="utf8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _measures(splits: Mapping[str, Split], untrained: Mapping[str, float], without: Collection[str]) -> Table:
    names = list(dict.fromkeys(name for _, found, _ in splits.values() for name in found if name not in without))
    columns = {split: found for split, (_, found, _) in splits.items()}
    columns |= {"dev, without pretraining": untrained} if untrained else {}
    rows = [
        [name.replace("_", " "), *(f"{found[name]:.4f}" if name in found else "" for found in columns.values())]
        for name in names
    ]
    return Table("Measures", ["", *columns], rows)


def _page(
    name: str,
    measures: Table,
    facts: Mapping[str, str],
    warnings: Sequence[str],
    tables: Sequence[Table],
    mistakes: Sequence[Mistake],
    pictures: Mapping[str, str],
    split: str,
    ranked_by: str,
) -> str:
    lines = [f"# {name}", "", *markdown(measures), ""]
    lines += [f"- warning: {warning}" for warning in warnings] + ([""] if warnings else [])
    lines += [f"![{text}]({file})\n" for file, text in pictures.items()]
    lines += [*markdown(Table("", ("run", ""), [[key, value] for key, value in facts.items()])), ""]
    for table in tables:
        lines += [f"## {table.title} ({split})", "", *markdown(table), ""]
    if mistakes:
        rows = [[f"{m.loss:.2f}", m.gold, m.predicted, _short(m.text)] for m in mistakes]
        lines += [f"## Worst mistakes ({split})", ""]
        lines += [*markdown(Table("", (ranked_by, "right", "predicted", "text"), rows)), ""]
    return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def markdown(table: Table) -> list[str]:
    """The lines of a table in a report."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    numbers = ["---"] + [
        "---:" if all(_is_number(row[i]) for row in table.rows) else "---" for i in range(1, len(table.columns))
    ]
    return [line(table.columns), "|" + "|".join(numbers) + "|", *map(line, table.rows)]


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").replace("-", "").isdigit() or not cell


def logged(metrics_file: Path, split: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of each line of metrics.jsonl that has the measure as a finite number."""
    records = read_metrics(metrics_file)
    return [(r["step"], r[name]) for r in records if r["split"] == split and r.get(name) is not None]


def draw_seeds(runs: Mapping[str, Path], picture: Path, metric: str | None) -> None:
    """Draw each run's training loss, and its measure on dev where there is one, over the steps, into a PNG.

    `runs`: metrics.jsonl by what the run is called.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [("train", "loss", "training loss"), ("heldout", "loss", "loss on dev")]
    if metric is not None:
        panels[1] = ("heldout", metric, f"{metric.replace('_', ' ')} on dev")
    for axes, (split, name, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for number, (label, file) in enumerate(runs.items()):
            points = logged(file, split, name)
            # Of a single point there is no line to see.
            style = {"marker": "o"} if split == "heldout" or len(points) == 1 else {}
            # A colour is a run's in both panels, also where it has nothing to show in one of them.
            style |= {"label": label, "color": f"C{number % 10}"}
            axes.plot([step for step, _ in points], [value for _, value in points], **style)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(picture, dpi=120)


def draw_trials(trials: Sequence[tuple[float | None, bool]], picture: Path, metric: str) -> None:
    """Draw the value of each trial of a search and the best one so far, into a PNG. `trials`: (value, came to its end?)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for finished, label, style in ((True, "finished", "o"), (False, "given up", "x")):
        points = [(n, value) for n, (value, ended) in enumerate(trials) if value is not None and ended is finished]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    finished = [(n, value) for n, (value, ended) in enumerate(trials) if value is not None and ended]
    if finished:
        numbers, values = zip(*finished, strict=True)
        axes.step(numbers, np.maximum.accumulate(values), where="post", label="best so far", alpha=0.6)
        axes.legend()
    axes.set(xlabel="trial", ylabel=f"{metric.replace('_', ' ')} on dev")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)


def draw_curves(metrics_file: Path, picture: Path, metric: str) -> None:
    """Draw loss and the task's measure over the steps, training and dev, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it keeps global state and looks for a display.
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 2), ("loss", metric), strict=True):
        for split, label, style in (("train", "training", {"alpha": 0.6}), ("heldout", "dev", {"marker": "o"})):
            points = logged(metrics_file, split, name)
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
        axes.set(title=name.replace("_", " "), xlabel="step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(picture, dpi=120)


def _can_be_drawn(name: str) -> bool:
    """Whether a class can stand at an axis: it is short, and the font has its characters (which of Chinese it has not)."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    glyphs = get_font(findfont(FontProperties())).get_charmap()
    return len(name) <= _LONGEST_NAME and all(ord(character) in glyphs for character in name)


def draw_confusion(picture: Path, names: Sequence[str], counts: np.ndarray) -> None:
    """Draw how often each class (row) was taken for each (column), as shares of the rows, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = max(4.0, 0.28 * len(names) + 2) + _INCHES * max(map(len, names))
    figure = Figure(figsize=(size, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted", ylabel="right")
    # A dollar sign in a label begins no formula.
    axes.set_xticklabels(names, rotation=90, parse_math=False)
    axes.set_yticklabels(names, parse_math=False)
    if len(names) <= 20:
        for row, column in np.argwhere(counts > 0).tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=8)
    figure.savefig(picture, dpi=120)


def show(measures: Table) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid(*measures.columns)
    for column in grid.columns[1:]:
        column.justify = "right"
    for row in measures.rows:
        grid.add_row(*row)
    Console().print(grid)
