"""Searches with made-up runs, whose values are known: what is kept, what is given up, and what a kill changes (nothing)."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from made_runs import reviews, small, write_table

from jaxbert import command_line, load
from jaxbert.config import ConfigError, UserError
from jaxbert.finetune import run
from jaxbert.finetune.config import ExamplesConfig, FinetuneConfig, FinetuneTrainConfig
from jaxbert.finetune.result import FinetuneResult, SearchResult
from jaxbert.finetune.search import Hopeless, load_suggest, search, trial_config
from jaxbert.finetune.validation import validate
from jaxbert.train.loop import NonFiniteError

optuna = pytest.importorskip("optuna")

SUGGEST = """
def suggest(trial):
    return {
        "optimizer.peak_learning_rate": trial.suggest_float("rate", 1e-5, 1e-3, log=True),
        "train.batch_size": trial.suggest_categorical("batch", [16, 32]),
    }
"""


class Killed(BaseException):
    """The process is gone."""


class Runs:
    """Runs that learn nothing; their accuracy is what `value` says of their configuration, half of it after half the steps."""

    def __init__(self, value: Callable[[FinetuneConfig], float], ends: dict[int, Any] | None = None):
        self.value, self.ends, self.seen = value, ends or {}, []

    def __call__(self, config: FinetuneConfig, hopeless: Hopeless) -> FinetuneResult:
        workdir, number = pathlib.Path(config.workdir), len(self.seen)
        self.seen.append(config)
        for name in ("checkpoints", "model"):
            (workdir / name).mkdir(parents=True, exist_ok=True)
        nothing = FinetuneResult(workdir, None, 5, {}, {}, {}, "accuracy")
        end = self.ends.get(number)
        if end is not None:
            hopeless(1, 0.99)
            if isinstance(end, BaseException):
                raise end
            return nothing
        value = self.value(config)
        if hopeless(1, value / 2):
            return nothing
        return FinetuneResult(workdir, workdir / "model", 10, {"accuracy": value}, {}, {}, "accuracy")


def nearness(config: FinetuneConfig) -> float:
    return 1 - abs(config.optimizer.peak_learning_rate - 3e-4) * 1000


def settings(tmp_path: pathlib.Path, trials: int, text: str = SUGGEST) -> FinetuneConfig:
    (tmp_path / "search.py").write_text(text)
    (tmp_path / "run").mkdir(exist_ok=True)
    return FinetuneConfig(
        name="made", workdir=str(tmp_path / "run"), search=str(tmp_path / "search.py"), trials=trials, seed=7
    )


def searched(config: FinetuneConfig, runs: Runs) -> SearchResult:
    assert config.search is not None
    return search(config, load_suggest(config.search), runs)


def drawn(runs: Runs) -> list[tuple[str, float, int]]:
    return [(pathlib.Path(c.workdir).name, c.optimizer.peak_learning_rate, c.train.batch_size) for c in runs.seen]


def test_the_best_is_kept_and_written_out(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    runs, config = Runs(nearness), settings(tmp_path, 12)
    found = searched(config, runs)
    assert len(runs.seen) == 12
    assert len({rate for _, rate, _ in drawn(runs)}) == 12
    workdir, content = tmp_path / "run", json.loads((tmp_path / "run" / "report.json").read_text())
    values = [trial["value"] for trial in content["trials"] if trial["ended"] == "finished"]
    assert found.dev["accuracy"] == max(values) == content["trials"][found.best_trial]["value"]
    best = command_line.load(workdir / "best.json", FinetuneConfig)
    assert best.optimizer.peak_learning_rate == found.values["optimizer.peak_learning_rate"]
    assert (best.search, best.workdir, best.name) == (None, str(workdir / "best"), "made")
    assert nearness(best) == found.dev["accuracy"]
    # What the search learns, it uses: the later half is nearer than the first (Optuna's TPE, which draws at random ten times).
    assert found.model == workdir / f"trial-{found.best_trial:04d}" / "model"
    kept = {
        path.name for path in workdir.glob("trial-*") if (path / "checkpoints").exists() or (path / "model").exists()
    }
    assert kept == {f"trial-{found.best_trial:04d}"}
    assert (workdir / "trials.png").read_bytes().startswith(b"\x89PNG")
    page = (workdir / "report.md").read_text()
    assert f"Best: trial {found.best_trial}, accuracy on dev {max(values):.4f}" in page
    said = capsys.readouterr().out
    assert f"train it again: python finetune.py --config {workdir / 'best.json'}" in said
    # Models of the others are deleted.
    assert "model for transformers" not in said


def test_more_trials_go_on_and_no_more_do_nothing(tmp_path: pathlib.Path):
    whole = Runs(nearness)
    expected = searched(settings(tmp_path, 8), whole)
    again = Runs(nearness)
    assert searched(settings(tmp_path, 8), again) == expected
    assert again.seen == []
    other = tmp_path / "other"
    other.mkdir()
    first, second = Runs(nearness), Runs(nearness)
    searched(settings(other, 3), first)
    searched(settings(other, 8), second)
    assert drawn(first) + drawn(second) == drawn(whole)


def test_what_is_worse_than_most_is_given_up(tmp_path: pathlib.Path):
    """Optuna's median pruner lets five trials end first."""
    order = [0.5, 0.6, 0.7, 0.8, 0.9, 0.2, 0.95, 0.1]
    runs = Runs(lambda config: order[len(runs.seen) - 1])
    found = searched(settings(tmp_path, 8), runs)
    content = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [trial["ended"] for trial in content["trials"]] == [*["finished"] * 5, "pruned", "finished", "pruned"]
    assert [trial["value"] for trial in content["trials"]] == [*order[:5], 0.1, 0.95, 0.05]
    assert found.best_trial == 6
    assert "6 finished, 2 pruned, 0 diverged" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize("end", [Killed(), "signal"])
def test_a_search_that_was_cut_short_goes_on_as_if_it_had_not_been(tmp_path: pathlib.Path, end: Any):
    whole = Runs(nearness)
    expected = searched(settings(tmp_path, 6), whole)
    place = tmp_path / "cut"
    place.mkdir()
    first = Runs(nearness, {2: end})
    if isinstance(end, Killed):
        with pytest.raises(Killed):
            searched(settings(place, 6), first)
    else:
        stopped = searched(settings(place, 6), first)
        assert (stopped.model, stopped.best_trial) == (None, None)
    # Cut short again, before it said anything.
    second = Runs(nearness, {0: end})
    if isinstance(end, Killed):
        with pytest.raises(Killed):
            searched(settings(place, 6), second)
    else:
        searched(settings(place, 6), second)
    third = Runs(nearness)
    found = searched(settings(place, 6), third)
    assert drawn(first)[2] == drawn(second)[0] == drawn(third)[0]
    assert drawn(first)[:2] + drawn(third) == drawn(whole)
    assert (found.best_trial, found.values) == (expected.best_trial, expected.values)


def test_a_trial_that_was_begun_keeps_its_values(tmp_path: pathlib.Path):
    """Also where the file draws others by now; and no run is left in the study that runs for ever."""
    first, second = Runs(nearness, {1: Killed()}), Runs(nearness)
    with pytest.raises(Killed):
        searched(settings(tmp_path, 3), first)
    searched(settings(tmp_path, 3, SUGGEST.replace("1e-3", "1e-2")), second)
    assert drawn(second)[0] == drawn(first)[1]
    study = optuna.load_study(study_name="finetune", storage=f"sqlite:///{tmp_path / 'run' / 'search.db'}")
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_what_diverges_is_counted_and_is_not_the_best(tmp_path: pathlib.Path):
    runs = Runs(
        lambda config: float("nan") if len(runs.seen) == 3 else nearness(config), {0: NonFiniteError("not finite")}
    )
    found = searched(settings(tmp_path, 4), runs)
    content = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [trial["ended"] for trial in content["trials"]] == ["diverged", "finished", "diverged", "finished"]
    assert found.best_trial in (1, 3)
    other = tmp_path / "other"
    other.mkdir()
    nothing = searched(settings(other, 1), Runs(nearness, {0: NonFiniteError("not finite")}))
    assert (nothing.model, nothing.best_trial) == (None, None)
    assert not (other / "run" / "best.json").exists()


WRONG = [
    ({"train.batchsize": 8}, r"train\.batchsize: there is no such field; did you mean train\.batch_size\?"),
    ({"optimiser.epsilon": 1e-8}, r"optimiser\.epsilon: there is no such field; did you mean optimizer\.epsilon\?"),
    ({"seed.x": 1}, r"seed\.x: there is no such field$"),
    ({"train.batch_size": "8"}, r"train\.batch_size is '8': it must be int"),
    ({"train.batch_size": 0}, r"train\.batch_size is 0: it must be"),
    ({"workdir": "x"}, "workdir is not for a trial to set"),
    ({"data.dev": ("x",)}, r"data\.dev is not for a trial to set"),
    ({"data": {"dev": ("x",)}}, r"data, with data\.dev in it, is not for a trial to set"),
    ({"mesh.fsdp": 2}, r"mesh\.fsdp is not for a trial to set"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_what_a_trial_may_not_set(tmp_path: pathlib.Path, values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        trial_config(settings(tmp_path, 1), values, 0)
    assert "\n" not in str(caught.value)
    assert "suggest(trial): " in str(caught.value)


def test_a_search_file_that_is_none(tmp_path: pathlib.Path):
    for text, message in (
        ("suggest = 3", r"has no suggest\(trial\)"),
        ("raise ValueError('no')", "ValueError: no"),
        ("def suggest(trial): return 3", "returns 3: it must return a dict"),
        ("def suggest(trial): return {1: 3}", "returns {1: 3}: it must return a dict"),
        ("def suggest(trial): return 1 / 0", "ZeroDivisionError: division by zero"),
    ):
        with pytest.raises(ConfigError, match=message):
            searched(settings(tmp_path, 1, text), Runs(nearness))
    with pytest.raises(ConfigError, match="no such file"):
        load_suggest(str(tmp_path / "gone.py"))
    with pytest.raises(ConfigError, match="each trial has one seed"):
        validate(dataclasses.replace(settings(tmp_path, 1), seeds=2), 8)


def test_a_value_that_is_mended_goes_on(tmp_path: pathlib.Path):
    """A trial whose values were refused is none."""
    with pytest.raises(ConfigError, match="there is no such field"):
        searched(settings(tmp_path, 2, SUGGEST.replace("batch_size", "batchsize")), Runs(nearness))
    runs = Runs(nearness)
    searched(settings(tmp_path, 2), runs)
    assert [name for name, _, _ in drawn(runs)] == ["trial-0000", "trial-0001"]


def test_a_trial_that_fails_does_not_spoil_the_study(tmp_path: pathlib.Path):
    """What it has left is taken up by the same values alone."""
    config, left = settings(tmp_path, 2), tmp_path / "run" / "trial-0000" / "left"
    first = Runs(nearness, {0: UserError("the disk is full")})
    with pytest.raises(UserError, match="the disk is full"):
        searched(config, first)
    left.touch()
    with pytest.raises(UserError, match="the disk is full"):
        searched(config, Runs(nearness, {0: UserError("the disk is full")}))
    assert left.is_file()
    mended = Runs(nearness)
    searched(settings(tmp_path, 2, SUGGEST.replace("1e-3", "1e-4")), mended)
    assert [name for name, _, _ in drawn(mended)] == ["trial-0000", "trial-0001"]
    assert all(rate <= 1e-4 for _, rate, _ in drawn(mended))
    assert not left.exists()


def test_other_choices_need_another_folder(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="no"):
        searched(settings(tmp_path, 2), Runs(nearness, {0: UserError("no")}))
    for text in (SUGGEST.replace("[16, 32]", "[16, 64]"), SUGGEST.replace(", log=True", "")):
        with pytest.raises(
            ConfigError, match=r"draws from other choices than the trials in .*: choose another --workdir"
        ):
            searched(settings(tmp_path, 2, text), Runs(nearness))


def test_a_search_on_labelled_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, count, seed in (("train", 96, 0), ("dev", 24, 1)):
        write_table(tmp_path / f"{name}.tsv", reviews(count, seed))
    (tmp_path / "search.py").write_text(
        "def suggest(trial):\n"
        "    rate = [1e-7, 5e-3][trial.suggest_int('rate', trial.number, trial.number)]\n"
        "    return {'optimizer.peak_learning_rate': rate, 'data.max_length': 32}\n"
    )
    config = small(
        tmp_path,
        tmp_path / "run",
        search="search.py",
        trials=2,
        data=ExamplesConfig(train=(str(tmp_path / "train.tsv"),), dev=(str(tmp_path / "dev.tsv"),)),
        train=FinetuneTrainConfig(epochs=3, batch_size=16, log_every=2),
    )
    found = run.finetune(config)
    assert isinstance(found, SearchResult)
    assert found.values == {"optimizer.peak_learning_rate": 5e-3, "data.max_length": 32}
    assert found.dev["accuracy"] > 0.6
    assert found.model is not None
    assert (found.model / "model.safetensors").is_file()
    assert load(tmp_path / "run").source == load(found.model).source
    content = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(content["trials"][1]["evaluations"]) == 2
    assert run.finetune(config) == found
    with pytest.raises(ConfigError, match="holds a search: choose another"):
        run.finetune(dataclasses.replace(config, search=None))
    # The best configuration trains again, and comes to the same.
    best = run.finetune(command_line.load(tmp_path / "run" / "best.json", FinetuneConfig))
    assert best.dev == found.dev
