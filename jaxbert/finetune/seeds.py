"""Several seeds of one fine-tuning: each a run of its own, then what they have in common and how far they are apart.

    WORKDIR/seed-K/                   a whole run, which goes on by itself
    WORKDIR/report.md, report.json    mean and standard deviation of every measure, a row for each seed
    WORKDIR/curves.png                learning curves of all seeds

The held-out part of the training rows is the same for all; order, dropout and a new head are not (Dodge et al. 2020 measured how
much that decides on small data sets; Mosbach et al. 2021 named the runs that fail).
"""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbert.finetune import report
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.finetune.result import FinetuneResult, SeedRun, SeedsResult, Spread
from jaxbert.tasks.task import Table
from jaxbert.train.loop import NonFiniteError
from jaxbert.train.processes import barrier, say
from jaxbert.train.tracking import read_metrics


def finetune_seeds(config: FinetuneConfig, train: Callable[[FinetuneConfig], FinetuneResult]) -> SeedsResult:
    """Train the seeds of the configuration one after another with `train`, and report on all of them.

    A seed whose losses are not finite is named, and does not end the others; a signal ends them all.
    """
    workdir = Path(config.workdir)
    runs: list[SeedRun] = []
    for number in range(config.seeds):
        seed = config.seed + number
        say(f"seed {seed}, {number + 1} of {config.seeds}:")
        one = dataclasses.replace(
            config, name=f"{config.name}, seed {seed}", workdir=str(folder_of(workdir, seed)), seed=seed, seeds=1
        )
        try:
            result = train(one)
        except NonFiniteError as error:
            say(f"seed {seed} diverged: {error}")
            runs.append(SeedRun(seed, None, f"stopped: {error}"))
            continue
        if result.model is None:
            return SeedsResult(workdir, None, result.step, {}, {}, {}, result.metric, None, (), {})
        barrier("jaxbert_seed_finished")
        folder = folder_of(workdir, seed)
        runs.append(SeedRun(seed, result, divergence(folder / "metrics.jsonl") or collapse(folder / "report.json")))
    found = summary(workdir, runs)
    if jax.process_index() == 0:
        _report(config, found)
    return found


def folder_of(workdir: Path, seed: int) -> Path:
    """Where the run of a seed is."""
    return workdir / f"seed-{seed}"


def divergence(metrics_file: Path) -> str | None:
    """How a run that came to its end failed to learn; None where its training loss ended below where it began.

    Compared are the means over the first and the last steps, as many as the longest line of metrics is of and at least a tenth of all;
    a run in which these would overlap is too short to tell.
    """
    records = read_metrics(metrics_file)
    lines = [(record["step"], record.get("loss")) for record in records if record["split"] == "train"]
    if lines and lines[-1][1] is None:
        return "its training loss is no finite number at the end"
    before = [0, *(step for step, _ in lines)]
    windows = [(step - first, loss) for first, (step, loss) in zip(before, lines, strict=False) if loss is not None]
    # The last line is of fewer steps than the others, and one of few steps is mostly noise.
    wanted = max([before[-1] / 10, *(steps for steps, _ in windows)])
    first, last = _leading(windows, wanted), _leading(windows[::-1], wanted)
    if not windows or len(first) + len(last) > len(windows):
        return None
    began, ended = _mean(first), _mean(last)
    return None if ended < began else f"its training loss began at {began:.4f} and ended at {ended:.4f}"


_Windows = Sequence[tuple[int, float]]
"""(steps, mean loss over them)."""


def _leading(windows: _Windows, steps: float) -> _Windows:
    """The first windows that together have so many steps, or all."""
    ends = itertools.accumulate(number for number, _ in windows)
    return windows[: 1 + next((n for n, end in enumerate(ends) if end >= steps), len(windows))]


def _mean(windows: _Windows) -> float:
    return sum(steps * loss for steps, loss in windows) / sum(steps for steps, _ in windows)


def collapse(report_file: Path) -> str | None:
    """Which one class a finished run predicts for all that its report is of, where there are several; None where it does not."""
    found = json.loads(report_file.read_text(encoding="utf8")) if report_file.is_file() else {}
    if not found.get("confusion"):
        return None
    counts = np.array(found["confusion"]["counts"])
    predicted, split = np.flatnonzero(counts.sum(0)), list(found["measures"])[-1]
    if len(predicted) != 1 or np.count_nonzero(counts.sum(1)) < 2:
        return None
    return f"it predicts {found['confusion']['labels'][predicted[0]]!r} for everything in {split}"


def summary(workdir: Path, runs: Sequence[SeedRun]) -> SeedsResult:
    """The seed that is best on dev (of equal ones the first), and how far the finished ones are apart."""
    finished = [(run.seed, run.result) for run in runs if run.result is not None]
    if not finished:
        return SeedsResult(workdir, None, 0, {}, {}, {}, "", None, tuple(runs), {})

    def value(one: tuple[int, FinetuneResult]) -> float:
        found = one[1].dev[one[1].metric]
        return found if math.isfinite(found) else -math.inf

    seed, best = max(finished, key=value)
    return SeedsResult(
        workdir,
        best.model,
        best.step,
        best.dev,
        best.test,
        best.untrained,
        best.metric,
        seed,
        tuple(runs),
        spread([result for _, result in finished]),
    )


def spread(results: Sequence[FinetuneResult]) -> dict[str, dict[str, Spread]]:
    """Mean and sample standard deviation of each measure of each split, over the runs that have it."""
    found: dict[str, dict[str, Spread]] = {}
    for split in _SPLITS:
        measures = [measures_of(result)[split] for result in results]
        names = list(dict.fromkeys(name for one in measures for name in one))
        terms = [name for name in names if name.endswith("_loss")]
        # The only term of a loss is the loss again.
        for name in names if len(terms) > 1 else (name for name in names if name not in terms):
            values = [one[name] for one in measures if name in one]
            found.setdefault(split, {})[name] = Spread(statistics.fmean(values), _deviation(values), len(values))
    return found


def _deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of a single value."""
    if len(values) == 1:
        return None
    # `stdev` raises AttributeError for these.
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


_SPLITS = ("dev", "test", "dev, without pretraining")


def measures_of(result: FinetuneResult) -> Mapping[str, Mapping[str, float]]:
    """Its measures by split."""
    return dict(zip(_SPLITS, (result.dev, result.test, result.untrained), strict=True))


def _report(config: FinetuneConfig, found: SeedsResult) -> None:
    workdir, diverged = found.workdir, [run for run in found.seeds if run.diverged]
    sound = [run.result for run in found.seeds if run.result is not None and not run.diverged]
    # Nothing is left out of the first; the second says what the failed runs did to it.
    without = spread(sound) if diverged and len(sound) < sum(run.result is not None for run in found.seeds) else {}
    measures, seeds = _measures(found, without), _seeds(found)
    files = {
        f"seed {run.seed}" + (", diverged" if run.diverged else ""): folder_of(workdir, run.seed) / "metrics.jsonl"
        for run in found.seeds
    }
    report.draw_seeds(files, workdir / "curves.png", found.metric or None)
    lines = [f"# {config.name}, {len(found.seeds)} seeds", "", *report.markdown(measures), ""]
    failed = [f"diverged: seed {run.seed}: {run.diverged}" for run in diverged]
    # It is the comparison's failure, and none of the seed.
    failed += [
        f"diverged without pretraining: seed {run.seed}: {run.result.untrained_diverged}"
        for run in found.seeds
        if run.result is not None and run.result.untrained_diverged
    ]
    lines += [f"- {line}" for line in failed] + ([""] if failed else [])
    best = None if found.best_seed is None else str(folder_of(Path(), found.best_seed) / "model")
    if best is not None:
        lines += [f"Best on dev ({found.metric.replace('_', ' ')}): seed {found.best_seed}, model in `{best}`.", ""]
    lines += ["![learning curves of all seeds](curves.png)", "", "## Seeds", "", *report.markdown(seeds), ""]
    (workdir / "report.md").write_text("\n".join(lines), encoding="utf8")
    content = {
        "name": config.name,
        "metric": found.metric,
        "best_seed": found.best_seed,
        # jaxbert.load takes the folder of all seeds for this one.
        "model": best,
        "spread": _json(found.spread),
        "spread_without_diverged": _json(without),
        "seeds": [_record(run) for run in found.seeds],
    }
    report.write_json(workdir / "report.json", content)
    report.show(measures)
    for line in failed:
        say(line)
    if found.model is not None:
        say(f"best on dev: seed {found.best_seed}, model: {found.model}")
    say(f"report: {workdir / 'report.md'}   curves: {workdir / 'curves.png'}")


def _measures(found: SeedsResult, without: Mapping[str, Mapping[str, Spread]]) -> Table:
    """A row for each measure: mean and deviation; where a finished seed diverged, also without it."""
    count = sum(run.result is not None for run in found.seeds)
    left = sum(run.result is not None and not run.diverged for run in found.seeds)
    columns = ["", f"mean ± sd of {count} seeds", *([f"of {left} that did not diverge"] if without else [])]
    rows = []
    for split, measures in found.spread.items():
        for name, one in measures.items():
            cells = [one, *([without.get(split, {}).get(name)] if without else [])]
            rows.append([f"{split}: {name.replace('_', ' ')}", *map(_cell, cells)])
    return Table("Measures", columns, rows)


def _cell(one: Spread | None) -> str:
    if one is None:
        return ""
    return f"{one.mean:.4f}" if one.sd is None else f"{one.mean:.4f} ± {one.sd:.4f}"


def _seeds(found: SeedsResult) -> Table:
    """A row for each seed."""
    names = [(split, name) for split, measures in found.spread.items() for name in measures]
    rows = []
    for run in found.seeds:
        measures = {} if run.result is None else measures_of(run.result)
        cells = [f"{measures[s][n]:.4f}" if n in measures.get(s, {}) else "" for s, n in names]
        state = ("stopped" if run.result is None else "diverged") if run.diverged else "finished"
        rows.append([f"{run.seed}", *cells, "" if run.result is None else f"{run.result.step}", state])
    return Table("Seeds", ["seed", *(f"{s}: {n.replace('_', ' ')}" for s, n in names), "best step", ""], rows)


def _json(spread: Mapping[str, Mapping[str, Spread]]) -> dict[str, Any]:
    return {
        split: {name: dataclasses.asdict(one) for name, one in measures.items()} for split, measures in spread.items()
    }


def _record(run: SeedRun) -> dict[str, Any]:
    measures = {} if run.result is None else {split: dict(found) for split, found in measures_of(run.result).items()}
    step = None if run.result is None else run.result.step
    untrained_diverged = None if run.result is None else run.result.untrained_diverged
    return {
        "seed": run.seed,
        "finished": run.result is not None,
        "diverged": run.diverged,
        "untrained_diverged": untrained_diverged,
        "step": step,
        "measures": measures,
    }
