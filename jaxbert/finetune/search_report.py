"""What a search leaves: the best trial's configuration, the report of all of them, and the picture."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxbert import command_line
from jaxbert.finetune import report
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.finetune.result import SearchResult
from jaxbert.finetune.study import best_of, clear, ended_as, ended_in, folder_of
from jaxbert.tasks.task import Table
from jaxbert.train.processes import say

if TYPE_CHECKING:
    import optuna


def finish(config: FinetuneConfig, study: "optuna.Study") -> SearchResult:
    """Write the best configuration, the report and the picture."""
    workdir, ended, best = Path(config.workdir), ended_in(study), best_of(study)
    # The process before this one may have been killed before it did.
    clear(study, workdir)
    metric = study.user_attrs.get("metric", "")
    values = [trial.value if ended_as(trial) == "finished" else _last(trial) for trial in ended]
    found = SearchResult(workdir, None, 0, {}, {}, {}, metric, None, {})
    if best is not None:
        chosen = ended[best].user_attrs
        result, model = chosen["result"], folder_of(workdir, best) / "model"
        found = SearchResult(
            workdir, model, result["step"], result["dev"], result["test"], {}, metric, best, chosen["values"]
        )
        base = dataclasses.replace(config, search=None, workdir=str(workdir / "best"))
        command_line.save(
            command_line.with_fields(base, chosen["values"]), workdir / "best.json", trial=best, value=ended[best].value
        )
    report.draw_trials(
        [(value, ended_as(trial) == "finished") for trial, value in zip(ended, values, strict=True)],
        workdir / "trials.png",
        metric,
    )
    table = _table(ended, values, metric)
    _write(config, found, ended, values, table)
    report.show(Table("", table.columns, table.rows))
    if best is None:
        say("no trial came to its end with a measure: narrow what suggest(trial) draws from")
    else:
        say(f"best: trial {best}, model: {found.model}")
        # The settings of somebody's own task have their class in a file that we do not know.
        own = "--config OWN.py " if hasattr(config.task, "make_task") else ""
        say(f"train it again: python finetune.py {own}--config {workdir / 'best.json'}")
    say(f"report: {workdir / 'report.md'}   trials: {workdir / 'trials.png'}")
    return found


def _last(trial: "optuna.trial.FrozenTrial") -> float | None:
    """What a trial that was given up reported last."""
    steps = trial.intermediate_values
    return steps[max(steps)] if steps else None


def _table(ended: "list[optuna.trial.FrozenTrial]", values: list[float | None], metric: str) -> Table:
    fields = list(dict.fromkeys(name for trial in ended for name in trial.user_attrs["values"]))
    rows = []
    for number, (trial, value) in enumerate(zip(ended, values, strict=True)):
        settings = trial.user_attrs["values"]
        cells = [short(settings[name]) if name in settings else "" for name in fields]
        rows.append([f"{number}", "" if value is None else f"{value:.4f}", ended_as(trial), *cells])
    return Table("Trials", ["trial", metric.replace("_", " ") or "value", "", *fields], rows)


def _write(
    config: FinetuneConfig,
    found: SearchResult,
    ended: "list[optuna.trial.FrozenTrial]",
    values: list[float | None],
    table: Table,
) -> None:
    workdir = found.workdir
    counts = [f"{sum(ended_as(trial) == end for trial in ended)} {end}" for end in ("finished", "pruned", "diverged")]
    lines = [f"# {config.name}, {len(ended)} trials", "", f"{', '.join(counts)}.", ""]
    if found.best_trial is not None:
        folder = folder_of(workdir, found.best_trial).name
        measure = f"{found.metric.replace('_', ' ')} on dev {found.dev[found.metric]:.4f}"
        lines += [f"Best: trial {found.best_trial}, {measure}, in `{folder}`; its configuration is `best.json`.", ""]
    lines += ["![trials](trials.png)", "", *report.markdown(table), ""]
    (workdir / "report.md").write_text("\n".join(lines), encoding="utf8")
    trials = [
        {
            "trial": number,
            "ended": ended_as(trial),
            "value": value,
            "values": trial.user_attrs["values"],
            "evaluations": {str(step): reported for step, reported in trial.intermediate_values.items()},
            "seconds": trial.user_attrs.get("seconds"),
        }
        for number, (trial, value) in enumerate(zip(ended, values, strict=True))
    ]
    content = {
        "name": config.name,
        "metric": found.metric,
        "best_trial": found.best_trial,
        # jaxbert.load takes the folder of the search for this one.
        "model": None if found.best_trial is None else str(folder_of(Path(), found.best_trial) / "model"),
        "trials": trials,
    }
    report.write_json(workdir / "report.json", content)


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
