"""What a search keeps of its trials: Optuna's study in its SQLite file, and a folder for each trial that came to an end."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxbert.train.checkpoint_record import CHECKPOINTS, RECORDS

if TYPE_CHECKING:
    import optuna

STUDY = "search.db"


def folder_of(workdir: Path, number: int) -> Path:
    """Where the run of a trial is."""
    return workdir / f"trial-{number:04d}"


def discard(study: "optuna.Study", folder: Path, number: int, values: Mapping[str, Any]) -> None:
    """Delete what a trial of this number that failed has left, unless this one goes on from there with the same values."""
    from optuna.trial import TrialState

    failed = [one for one in study.get_trials(states=(TrialState.FAIL,)) if one.user_attrs.get("number") == number]
    # As they are once they were stored.
    if failed and failed[-1].user_attrs["values"] != json.loads(json.dumps(dict(values))):
        shutil.rmtree(folder, ignore_errors=True)


def take_up(study: "optuna.Study") -> None:
    """Queue again what was running when the process before this one ended, with what it has reported."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        params = {**trial.user_attrs.get("params", {}), **trial.params}
        reported = {**trial.user_attrs.get("reported", {}), **trial.intermediate_values}
        # Queued first: a kill between the two must not lose it.
        if params and not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial(params, user_attrs={"params": params, "reported": reported})
        study.tell(trial.number, state=TrialState.FAIL)


def ended_in(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Trials that came to an end; the number of a trial is its place here, since Optuna's also count those that were cut short."""
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def best_of(study: "optuna.Study") -> int | None:
    """The number of the trial with the highest value, of equal ones the first."""
    finished = [(number, trial) for number, trial in enumerate(ended_in(study)) if ended_as(trial) == "finished"]
    values = {number: trial.value for number, trial in finished if trial.value is not None}
    return max(values, key=lambda number: values[number]) if values else None


def ended_as(trial: "optuna.trial.FrozenTrial") -> str:
    return trial.user_attrs["ended"]


def clear(study: "optuna.Study", workdir: Path) -> None:
    """Delete checkpoints and models of all trials but the best; their metrics and reports stay."""
    best = best_of(study)
    for number in range(len(ended_in(study))):
        for name in (RECORDS, CHECKPOINTS, "model") if number != best else ():
            shutil.rmtree(folder_of(workdir, number) / name, ignore_errors=True)
