"""Trackers: what they write, how a resumed run reads as one, and that none of them stops a training."""

import io
import json
import logging
import math
import sys
import types

import pytest

from jaxbert.config import TrackingConfig
from jaxbert.train import tracking
from jaxbert.train.console import ConsoleTracker
from jaxbert.train.tracking import (
    JsonlTracker,
    TensorBoardTracker,
    Trackers,
    WandbTracker,
    make_trackers,
    read_metrics,
)

LINE = {
    "loss": 6.5,
    "mlm_accuracy": 0.123,
    "nsp_accuracy": 0.5,
    "tokens_per_second": 12345.6,
    "input_wait_share": 0.004,
    "nonfinite_steps": 0.0,
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_has_one_object_a_line_and_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(10, {"loss": 6.5, "grad_norm": math.inf})
    # Each line is on disk at once.
    assert len(read_lines(path)) == 1
    tracker.log(10, {"loss": math.nan}, "heldout")
    tracker.close()
    first, second = read_lines(path)
    assert first.pop("time") > 1e9
    assert first == {"step": 10, "split": "train", "loss": 6.5, "grad_norm": None}
    assert second.pop("time") > 1e9
    assert second == {"step": 10, "split": "heldout", "loss": None}
    assert "NaN" not in path.read_text()


def test_a_resumed_jsonl_reads_as_one_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    for step in (10, 20, 30, 40):
        tracker.log(step, {"loss": float(step)})
    tracker.close()
    with path.open("a") as file:
        file.write('{"step": 15, "split": "tr')  # what a crash leaves
    tracker = JsonlTracker(path, resume_step=20)
    tracker.log(30, {"loss": 31.0})
    tracker.close()
    assert [(line["step"], line["loss"]) for line in read_lines(path)] == [(10, 10.0), (20, 20.0), (30, 31.0)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_without_its_end_is_dropped_even_where_it_parses(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    JsonlTracker(path, resume_step=9).close()
    assert path.read_text() == '{"step": 1}\n'


def test_tensorboard_has_every_metric_and_hides_what_lies_beyond_the_resumed_step(tmp_path, monkeypatch):
    tensorboardX = pytest.importorskip("tensorboardX")
    from tensorboardX.event_file_writer import EventFileWriter

    made, scalars = [], []
    original = tensorboardX.SummaryWriter.__init__

    def init(self, *args, **kwargs):
        made.append(kwargs)
        original(self, *args, **kwargs)

    def add_event(self, event):
        scalars.extend((value.tag, value.simple_value, event.step) for value in event.summary.value)

    monkeypatch.setattr(tensorboardX.SummaryWriter, "__init__", init)
    monkeypatch.setattr(EventFileWriter, "add_event", add_event)
    tracker = TensorBoardTracker(tmp_path, resume_step=20)
    tracker.log(30, {"loss": 2.0, "mlm_loss": 1.5})
    tracker.log(30, {"loss": 3.0}, "heldout")
    tracker.close()
    assert made == [{"purge_step": 21}]
    assert scalars == [("train/loss", 2.0, 30), ("train/mlm_loss", 1.5, 30), ("heldout/loss", 3.0, 30)]
    assert [path for path in tmp_path.iterdir() if path.name.startswith("events")]


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.lines = []
        self.closed = False

    def log(self, step, metrics, split="train"):
        self.lines.append((step, split))

    def close(self):
        self.closed = True


class Broken(Recorder):
    """A tracker that fails at its second line, and would at every later one."""

    def log(self, step, metrics, split="train"):
        super().log(step, metrics, split)
        if len(self.lines) > 1:
            raise OSError("no space left")


def test_a_tracker_that_raises_is_reported_once_and_dropped(caplog):
    broken, recorder = Broken(), Recorder()
    group = Trackers([broken, recorder])
    for step in range(1, 5):
        group.log(step, {"loss": 1.0})
    group.close()
    assert [step for step, _ in recorder.lines] == [1, 2, 3, 4]
    assert [step for step, _ in broken.lines] == [1, 2]
    assert (broken.closed, recorder.closed) == (False, True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "Broken failed at step 2 and is left out from here on: OSError: no space left"


def test_a_tracker_that_fails_to_close_does_not_keep_the_others_open(caplog):
    failing, recorder = Recorder(), Recorder()
    failing.close = lambda: 1 / 0
    Trackers([failing, recorder]).close()
    assert recorder.closed
    assert "Recorder failed to close: ZeroDivisionError" in caplog.text


def test_a_tracker_that_cannot_start_is_warned_of_and_left_out(tmp_path, monkeypatch, caplog, capsys):
    def init(**settings):
        raise RuntimeError("no network\nand more of it")

    def summary_writer(*arguments, **options):
        raise PermissionError("not yours")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=summary_writer))
    (tmp_path / "metrics.jsonl").mkdir()
    group = make_trackers(TrackingConfig(wandb=True), tmp_path, name="run", num_steps=10)
    group.log(5, {"loss": 1.0})
    group.close()
    assert "step 5/10" in capsys.readouterr().out
    jsonl, wandb, tensorboard = (record.getMessage() for record in caplog.records)
    assert jsonl.startswith("JsonlTracker failed to start and is left out: IsADirectoryError")
    assert wandb == "WandbTracker failed to start and is left out: RuntimeError: no network"
    assert tensorboard == "TensorBoardTracker failed to start and is left out: PermissionError: not yours"
    # Reports and early stopping, which read what it would have written, go on without.
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        def define_metric(self, *args, **kwargs):
            calls.append(("define_metric", args, kwargs))

        def log(self, values):
            calls.append(("log", values))

        def finish(self):
            calls.append(("finish",))

    def init(**settings):
        calls.append(("init", settings))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        tracker = WandbTracker("project", "name", tmp_path, {"seed": 3})
        tracker.log(7, {"loss": 1.0}, "heldout")
        tracker.close()
    first, again = (call[1] for call in calls if call[0] == "init")
    assert first == again
    assert first["project"] == "project"
    assert first["resume"] == "allow"
    assert first["config"] == {"seed": 3}
    assert first["id"]
    assert ("log", {"step": 7, "heldout/loss": 1.0}) in calls
    assert ("define_metric", ("*",), {"step_metric": "step"}) in calls
    assert calls[-1] == ("finish",)


def test_the_console_prints_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    tracker = ConsoleTracker(1000, stream=stream)
    tracker.log(100, LINE)
    tracker.log(100, {"loss": 6.25, "mlm_accuracy": 0.2}, "heldout")
    tracker.log(200, {**LINE, "nonfinite_steps": 3.0, "mfu": 0.41})
    tracker.close()
    first, heldout, second = stream.getvalue().splitlines()
    assert first.startswith(
        "step 100/1,000  loss 6.5000  mlm 12.3 %  nsp 50.0 %  12,346 tokens/s  input 0.4 %  left 0:"
    )
    assert heldout == "step 100 held-out  loss 6.2500  mlm 20.0 %"
    assert "mfu 41.0 %  skipped 3" in second
    assert "\x1b" not in stream.getvalue()


def test_the_time_left_counts_from_where_the_run_went_on(monkeypatch):
    clock = iter([100.0, 160.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    tracker = ConsoleTracker(10_000, resume_step=2_000, stream=stream)
    tracker.log(2_100, {})
    # 100 steps in 60 s leave 7,900 steps in 4,740 s.
    assert stream.getvalue().endswith("left 1:19:00\n")


def test_the_console_has_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    tracker = ConsoleTracker(1000, resume_step=50, stream=stream)
    tracker.log(100, LINE)
    tracker.log(100, {"loss": 6.25}, "heldout")
    tracker.close()
    shown = stream.getvalue()
    for part in ("100/1000", "━", "loss 6.5000", "mlm 12.3 %", "nsp 50.0 %", "12,346 tokens/s", "input 0.4 %", "left"):
        assert part in shown
    assert "step 100 held-out  loss 6.2500" in shown


def test_make_trackers_makes_what_was_asked_for_and_nothing_in_other_processes(tmp_path, monkeypatch, capsys):
    group = make_trackers(TrackingConfig(tensorboard=False), tmp_path, name="run", num_steps=10)
    group.log(5, {"loss": 1.0})
    group.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert "step 5/10" in capsys.readouterr().out
    monkeypatch.setattr(tracking.jax, "process_index", lambda: 1)
    make_trackers(TrackingConfig(), tmp_path / "other", name="run", num_steps=10).close()
    assert not (tmp_path / "other").exists()
