"""Several seeds of one fine-tuning: their numbers by hand, one that diverges, and what is not trained again."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import pytest
from made_runs import reviews, small, write_table

from jaxbert import load
from jaxbert.config import ConfigError, OptimizerConfig
from jaxbert.finetune import run, seeds
from jaxbert.finetune.config import ExamplesConfig, FinetuneConfig, FinetuneTrainConfig
from jaxbert.finetune.result import FinetuneResult, SeedsResult, Spread
from jaxbert.finetune.seeds import collapse, divergence, finetune_seeds
from jaxbert.train.loop import NonFiniteError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def log(folder: pathlib.Path, losses: list[float | None]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"step": n + 1, "split": "train", **({} if loss is None else {"loss": loss})} for n, loss in enumerate(losses)
    ]
    lines.append({"step": len(losses), "split": "heldout", "loss": 9.0, "accuracy": 0.5})
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# Accuracy on dev and training losses of each seed; None stops for losses that are not finite.
MADE = {3: (0.5, [2.0, 1.0]), 4: (0.9, [2.0, 1.5]), 5: None, 6: (0.1, [2.0, 2.0]), 7: (0.6, [2.0, 1.9])}


def pretend(config: FinetuneConfig) -> FinetuneResult:
    workdir, made = pathlib.Path(config.workdir), MADE[config.seed]
    log(workdir, [2.0] if made is None else made[1])
    if made is None:
        raise NonFiniteError("loss or gradient is not finite at step 7")
    return FinetuneResult(
        workdir, workdir.absolute() / "model", 2, {"accuracy": made[0]}, {"f1": made[0] / 2}, {}, "accuracy"
    )


def report_of(workdir: pathlib.Path) -> dict[str, Any]:
    return json.loads((workdir / "report.json").read_text(encoding="utf8"))


def test_the_numbers_are_those_by_hand(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    # Relative, while models are named with their whole path.
    workdir = pathlib.Path("all")
    workdir.mkdir()
    found = finetune_seeds(FinetuneConfig(name="made", workdir=str(workdir), seed=3, seeds=5), pretend)
    # 0.5, 0.9, 0.1, 0.6: their mean is 0.525; squares of the distances add up to 0.3275, over 3.
    mean, sd = 0.525, (0.3275 / 3) ** 0.5
    assert found.spread["dev"]["accuracy"] == Spread(pytest.approx(mean), pytest.approx(sd), 4)
    assert found.spread["test"]["f1"] == Spread(pytest.approx(mean / 2), pytest.approx(sd / 2), 4)
    assert (found.best_seed, found.model) == (4, workdir.absolute() / "seed-4" / "model")
    assert (found.dev, found.workdir) == ({"accuracy": 0.9}, workdir)
    assert [one.seed for one in found.seeds if one.diverged] == [5, 6]

    content = report_of(workdir)
    assert content["spread"]["dev"]["accuracy"] == {"mean": pytest.approx(mean), "sd": pytest.approx(sd), "count": 4}
    # Without the one that diverged: 0.5, 0.9, 0.6.
    without = content["spread_without_diverged"]["dev"]["accuracy"]
    assert without == {"mean": pytest.approx(2 / 3), "sd": pytest.approx((0.26 / 3 / 2) ** 0.5), "count": 3}
    assert [(one["seed"], one["finished"]) for one in content["seeds"]] == [
        (3, True),
        (4, True),
        (5, False),
        (6, True),
        (7, True),
    ]
    assert (content["best_seed"], content["model"]) == (4, "seed-4/model")
    page = (workdir / "report.md").read_text(encoding="utf8")
    assert "| dev: accuracy | 0.5250 ± 0.3304 | 0.6667 ± 0.2082 |" in page
    assert "- diverged: seed 5: stopped: loss or gradient is not finite at step 7" in page
    assert "- diverged: seed 6: its training loss began at 2.0000 and ended at 2.0000" in page
    assert "| 6 | 0.1000 | 0.0500 | 2 | diverged |" in page
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "0.5250 ± 0.3304" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("terms", "shown"), [((), ()), (("label_loss",), ()), (("a_loss", "b_loss"), ("a_loss", "b_loss"))]
)
def test_terms_of_a_loss_that_has_several(tmp_path: pathlib.Path, terms: tuple[str, ...], shown: tuple[str, ...]):
    measures = {"loss": 1.0, "accuracy": 0.5} | dict.fromkeys(terms, 0.5)
    result = FinetuneResult(tmp_path, None, 1, measures, {}, {}, "accuracy")
    assert [*seeds.spread([result])["dev"]] == ["loss", "accuracy", *shown]


def test_a_comparison_that_diverged_is_said_and_is_not_the_seed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    def compared(config: FinetuneConfig) -> FinetuneResult:
        diverged = {"untrained_diverged": "not finite"} if config.seed == 4 else {"untrained": {"accuracy": 0.3}}
        return dataclasses.replace(pretend(config), **diverged)

    found = finetune_seeds(FinetuneConfig(workdir=str(tmp_path), seed=3, seeds=2), compared)
    assert [one.diverged for one in found.seeds] == [None, None]
    assert found.spread["dev"]["accuracy"].count == 2
    assert found.spread["dev, without pretraining"]["accuracy"] == Spread(0.3, None, 1)
    line = "diverged without pretraining: seed 4: not finite\n"
    assert line in capsys.readouterr().out
    assert f"- {line}" in (tmp_path / "report.md").read_text(encoding="utf8")
    assert [one["untrained_diverged"] for one in report_of(tmp_path)["seeds"]] == [None, "not finite"]


def test_numbers_that_are_not_finite_are_null_in_the_report(tmp_path: pathlib.Path):
    def odd(config: FinetuneConfig) -> FinetuneResult:
        result = pretend(config)
        return dataclasses.replace(result, dev={**result.dev, "loss": math.nan if config.seed == 4 else 1.0})

    finetune_seeds(FinetuneConfig(workdir=str(tmp_path), seed=3, seeds=2), odd)
    text = (tmp_path / "report.json").read_text(encoding="utf8")
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["spread"]["dev"]["loss"] == {"mean": None, "sd": None, "count": 2}
    assert [one["measures"]["dev"]["loss"] for one in content["seeds"]] == [1.0, None]


def test_when_no_seed_is_finished(tmp_path: pathlib.Path):
    found = finetune_seeds(FinetuneConfig(workdir=str(tmp_path), seed=5, seeds=1), pretend)
    assert (found.model, found.best_seed, found.spread) == (None, None, {})
    assert report_of(tmp_path)["seeds"][0]["diverged"].startswith("stopped: ")


def test_a_signal_ends_all_seeds(tmp_path: pathlib.Path):
    trained = []

    def stopping(config: FinetuneConfig) -> FinetuneResult:
        trained.append(config.seed)
        result = pretend(config)
        return dataclasses.replace(result, model=None) if config.seed == 4 else result

    found = finetune_seeds(FinetuneConfig(workdir=str(tmp_path), seed=3, seeds=5), stopping)
    assert (trained, found.model) == ([3, 4], None)
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([2.0, 3.0, 1.9], False),
        ([2.0, 1.0, 2.0], True),
        ([2.0, 1.0, 2.1], True),
        ([2.0, 1.0, None], True),
        ([None, 2.0, 1.0], False),
        ([None, 2.0], False),
        ([2.0], False),
        ([None], True),
        ([], False),
    ],
)
def test_what_is_called_diverged(tmp_path: pathlib.Path, losses: list[float | None], diverged: bool):
    assert (divergence(log(tmp_path, losses)) is not None) == diverged


def logged_at(folder: pathlib.Path, lines: dict[int, float]) -> pathlib.Path:
    path = folder / "metrics.jsonl"
    records = [{"step": step, "split": "train", "loss": loss} for step, loss in lines.items()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("lines", "diverged"),
    [
        # A last line of 4 steps decides nothing.
        ({20: 2.0, 40: 1.0, 44: 2.1}, None),
        ({20: 2.0, 24: 2.1}, None),
        ({20: 2.0, 40: 2.0, 44: 2.6}, "began at 2.0000 and ended at 2.1000"),
        # Nor does one step of twenty.
        ({n: 1.0 if n == 1 else 2.0 - n / 20 for n in range(1, 21)}, None),
        ({n: 1.0 if n == 20 else 2.0 + n / 20 for n in range(1, 21)}, None),
        ({n: 2.0 + n / 20 for n in range(1, 21)}, "began at 2.0750 and ended at 2.9750"),
    ],
)
def test_as_many_steps_are_compared(tmp_path: pathlib.Path, lines: dict[int, float], diverged: str | None):
    found = divergence(logged_at(tmp_path, lines))
    assert found is None if diverged is None else found == f"its training loss {diverged}"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[0, 3], [0, 5]], "it predicts 'good' for everything in test"),
        ([[1, 2], [0, 5]], None),
        # There is but one class to find.
        ([[0, 0], [0, 5]], None),
    ],
)
def test_one_class_for_everything_is_called_diverged(tmp_path: pathlib.Path, counts: list, expected: str | None):
    path = tmp_path / "report.json"
    assert collapse(path) is None
    content = {"measures": {"dev": {}, "test": {}}, "confusion": {"labels": ["bad", "good"], "counts": counts}}
    path.write_text(json.dumps(content))
    assert collapse(path) == expected
    path.write_text(json.dumps(content | {"confusion": None}))
    assert collapse(path) is None


def test_seeds_from_labelled_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Three real ones, of which one has an absurd learning rate; the same command again; then one more seed."""
    write_table(tmp_path / "train.tsv", reviews(96, 0))
    real, trained = run._finetune_once, []

    def planted(config: FinetuneConfig, examples, before: str | None) -> FinetuneResult:
        trained.append((config.seed, {example.text for example in examples.dev}, before))
        if config.seed == 1:
            optimizer = OptimizerConfig(peak_learning_rate=1e30, warmup_share=0.0, max_grad_norm=0.0)
            config = dataclasses.replace(
                config, optimizer=optimizer, train=dataclasses.replace(config.train, max_nonfinite_steps=2)
            )
        return real(config, examples, before)

    monkeypatch.setattr(run, "_finetune_once", planted)
    config = small(
        tmp_path,
        tmp_path / "run",
        seeds=3,
        data=ExamplesConfig(train=(str(tmp_path / "train.tsv"),), dev_share=0.2),
        train=FinetuneTrainConfig(epochs=6, batch_size=16, log_every=10),
    )
    found = run.finetune(config)
    assert isinstance(found, SeedsResult)
    assert [(one.seed, one.diverged is not None, one.result is None) for one in found.seeds] == [
        (0, False, False),
        (1, True, True),
        (2, False, False),
    ]
    assert [seed for seed, _, _ in trained] == [0, 1, 2]
    # All are measured on the same examples, and start from the same.
    assert all(one[1:] == trained[0][1:] for one in trained)
    assert found.best_seed in (0, 2)
    assert found.model == tmp_path / "run" / f"seed-{found.best_seed}" / "model"
    assert (found.model / "model.safetensors").is_file()
    assert load(tmp_path / "run").source == load(found.model).source
    # Order, dropout and head are their own.
    logs = [seeds.folder_of(tmp_path / "run", seed) / "metrics.jsonl" for seed in (0, 2)]
    before = [path.read_text() for path in logs]
    assert json.loads(before[0].splitlines()[0])["loss"] != json.loads(before[1].splitlines()[0])["loss"]

    again = run.finetune(dataclasses.replace(config, seeds=2))
    assert isinstance(again, SeedsResult)
    assert again.seeds[0].result == found.seeds[0].result
    # Times of lines are those of the first start: nothing was trained again.
    assert [path.read_text() for path in logs] == before
    with pytest.raises(ConfigError, match="holds runs of several seeds"):
        run.finetune(dataclasses.replace(config, seeds=1))
