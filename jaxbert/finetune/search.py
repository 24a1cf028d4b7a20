"""A search for the settings that do best on dev, with Optuna: each trial is a run of its own, and the study outlives the process.

    WORKDIR/search.db                 Optuna's study
    WORKDIR/trial-0007/               a whole run; checkpoints and model stay with the best one alone
    WORKDIR/best.json                 its configuration: finetune.py --config WORKDIR/best.json
    WORKDIR/report.md, report.json    all trials
    WORKDIR/trials.png                what each reached

The draws of a trial depend on (seed, number of the trial) and on the trials before it, so that a search that was killed
goes on as if it had not been.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxbert import command_line
from jaxbert.config import ConfigError, UserError
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.finetune.result import FinetuneResult, SearchResult
from jaxbert.finetune.search_report import finish, short
from jaxbert.finetune.study import STUDY, clear, discard, ended_in, folder_of, take_up
from jaxbert.finetune.validation import validate
from jaxbert.train.loop import NonFiniteError
from jaxbert.train.processes import say

if TYPE_CHECKING:
    import optuna

Suggest = Callable[["optuna.Trial"], Mapping[str, Any]]
Hopeless = Callable[[int, float], bool]
"""(number of the evaluation, from 1; the measure that it found) -> whether the run is better given up."""
Train = Callable[[FinetuneConfig, Hopeless], FinetuneResult]

# What a trial may not set: the search does, or there is but one for all trials.
_RESERVED = (
    "workdir name seeds search trials check_data compare_untrained mesh distributed checkpoint tracking data.dev data.dev_share "
    "data.test task.metric"
).split()

# What Optuna says of a parameter that is drawn from elsewhere than before.
_CHANGED = (
    "does not support dynamic value space",
    "Cannot set different distribution kind",
    "Cannot set different log",
)


def load_suggest(file: str) -> Suggest:
    """The function `suggest` of a Python file, which is run. Raises ConfigError where there is none, and without Optuna."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError("search needs Optuna, which is not installed: pip install optuna") from error
    if not Path(file).is_file():
        raise ConfigError(f"search {file}: no such file: name a Python file with suggest(trial)")
    try:
        suggest: Suggest | None = getattr(command_line.run_file(Path(file)), "suggest", None)
    except Exception as error:  # whatever the user's program raises
        raise ConfigError(f"{file}: {_one_line(error)}") from error
    if not callable(suggest):
        raise ConfigError(f"{file}: has no suggest(trial) that returns values of fields")
    return suggest


def search(config: FinetuneConfig, suggest: Suggest, train: Train) -> SearchResult:
    """Run trials until there are `config.trials` in the study, and report on all of them.

    A trial that the pruner gives up, or whose losses are not finite, is counted; one that was cut short is run again, from its
    checkpoint. Raises ConfigError, before anything is trained, for a value that its field does not take.
    """
    import optuna

    if jax.process_count() > 1:
        raise ConfigError("search runs in one process: start it without distributed.initialize")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workdir = Path(config.workdir)
    storage = optuna.storages.RDBStorage(f"sqlite:///{workdir / STUDY}")
    try:
        pruner = optuna.pruners.MedianPruner()
        study = optuna.create_study(
            storage=storage, study_name="finetune", direction="maximize", pruner=pruner, load_if_exists=True
        )
        take_up(study)
        while (number := len(ended_in(study))) < config.trials:
            # A sampler that began with one seed would draw the same again after each start.
            seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
            study.sampler = optuna.samplers.TPESampler(seed=seed)
            if not _run_trial(config, suggest, train, study, number):
                return SearchResult(workdir, None, 0, {}, {}, {}, "", None, {})
            clear(study, workdir)
        return finish(config, study)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def trial_config(config: FinetuneConfig, values: Mapping[str, Any], number: int) -> FinetuneConfig:
    """The run of a trial. Raises ConfigError for a field that is not there, or does not take its value."""
    try:
        for name in values:
            # Neither what is in a field of these, nor what has one of them in it.
            met = [r for r in _RESERVED if f"{name}.".startswith(f"{r}.") or f"{r}.".startswith(f"{name}.")]
            if met:
                within = f", with {met[0]} in it," if met[0].startswith(f"{name}.") else ""
                raise ConfigError(f"{name}{within} is not for a trial to set: leave it out")
        workdir = str(folder_of(Path(config.workdir), number))
        base = dataclasses.replace(
            config, name=f"{config.name}, trial {number}", workdir=workdir, search=None, compare_untrained=False
        )
        one = command_line.with_fields(base, values)
        validate(one, jax.device_count())
    except ConfigError as error:
        raise ConfigError(f"{config.search}: suggest(trial): {'; '.join(str(error).splitlines())}") from error
    return one


def _run_trial(config: FinetuneConfig, suggest: Suggest, train: Train, study: "optuna.Study", number: int) -> bool:
    """Run one trial to its end, and tell the study; False where a signal cut it short."""
    from optuna.trial import TrialState

    trial = study.ask()
    reported = {int(step): value for step, value in trial.user_attrs.get("reported", {}).items()}
    for step, value in reported.items():
        trial.report(value, step)
    try:
        values = _suggested(suggest, trial, config)
        one = trial_config(config, values, number)
    except ConfigError:
        study.tell(trial, state=TrialState.FAIL)
        raise
    settings = ", ".join(f"{name} {short(value)}" for name, value in values.items())
    say(f"trial {number}, {number + 1} of {config.trials}: {settings}")
    hopeless = False

    def watch(evaluation: int, value: float) -> bool:
        nonlocal hopeless
        # A run that goes on from its checkpoint says again what it said there.
        if evaluation not in reported and math.isfinite(value):
            trial.report(value, evaluation)
            reported[evaluation] = value
        hopeless = bool(reported) and trial.should_prune()
        return hopeless

    started = time.monotonic()
    discard(study, Path(one.workdir), number, values)
    trial.set_user_attr("number", number)
    trial.set_user_attr("values", dict(values))
    try:
        result = train(one, watch)
    except NonFiniteError as error:
        say(f"trial {number} diverged: {error}")
        trial.set_user_attr("ended", "diverged")
        # Unlike one that failed, a trial that is pruned teaches the sampler to draw elsewhere.
        study.tell(trial, state=TrialState.PRUNED)
        return True
    except UserError:
        # One that goes on running would be taken up with these values again.
        study.tell(trial, state=TrialState.FAIL)
        raise
    if result.model is None and not hopeless:
        return False
    study.set_user_attr("metric", result.metric)
    value = result.dev.get(result.metric, math.nan)
    finished = result.model is not None and math.isfinite(value)
    trial.set_user_attr("ended", "finished" if finished else "pruned" if result.model is None else "diverged")
    trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
    trial.set_user_attr("result", {"step": result.step, "dev": dict(result.dev), "test": dict(result.test)})
    if finished:
        study.tell(trial, value)
    else:
        say(f"trial {number} is given up at step {result.step:,}")
        study.tell(trial, state=TrialState.PRUNED)
    return True


def _suggested(suggest: Suggest, trial: "optuna.Trial", config: FinetuneConfig) -> Mapping[str, Any]:
    try:
        values = suggest(trial)
    except Exception as error:  # whatever the user's program raises
        if any(text in str(error) for text in _CHANGED):
            raise ConfigError(
                f"{config.search}: suggest(trial) draws from other choices than the trials in {config.workdir}, which cannot be "
                "compared: choose another --workdir"
            ) from error
        raise ConfigError(f"{config.search}: suggest(trial): {_one_line(error)}") from error
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{config.search}: suggest(trial) returns {values!r}: it must return a dict of fields")
    return values


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
