"""A task on the devices: mesh, optimizer, state and steps, put together once, for pretraining and for fine-tuning alike."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbert.config import CheckpointConfig, MeshConfig, OptimizerConfig, TrackingConfig, TrainConfig, UserError
from jaxbert.train.checkpoint import Checkpoints
from jaxbert.train.loop import Evaluate, FitResult, fit
from jaxbert.train.optimizer import make_optimizer, make_schedule, of_groups, part
from jaxbert.train.processes import describe_devices, say
from jaxbert.train.sharding import make_mesh, put_batch
from jaxbert.train.state import Task, TrainState, abstract_state, create_state, with_params
from jaxbert.train.step import make_train_step
from jaxbert.train.tracking import make_trackers


class Settings(Protocol):
    """What a run's configuration says of it, whatever its task is."""

    @property
    def name(self) -> str: ...
    @property
    def workdir(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...
    @property
    def tracking(self) -> TrackingConfig: ...
    @property
    def mesh(self) -> MeshConfig: ...


class Session:
    """A task with its mesh and its optimizer.

    settings: a dataclass, `Config` or `FinetuneConfig`. train: the steps, as the loop wants them. trained: groups of the parameters
    that are trained, where it is not all of them; the others have neither gradients nor moments.
    """

    def __init__(self, settings: Settings, train: TrainConfig, task: Task, trained: Sequence[str] | None = None):
        self.settings: Settings = settings
        self.task: Task = task
        self.mesh: Mesh = make_mesh(settings.mesh)
        self._train = train
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        self._trained = trained
        moved = shapes if trained is None else part(shapes, trained)
        self.num_parameters: int = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        self.num_trained: int = sum(leaf.size for leaf in jax.tree.leaves(moved))
        optimizer = make_optimizer(settings.optimizer, train.num_steps, moved)
        self._optimizer = optimizer if trained is None else of_groups(optimizer, trained)
        self.abstract: TrainState = abstract_state(task, self._optimizer, self.mesh)
        """What a checkpoint is restored into."""
        self.shardings: TrainState = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of a batch, on the devices."""
        return put_batch(batch, self.mesh)

    def start(self, checkpoints: Checkpoints, params: Mapping[str, Any] | None = None) -> TrainState:
        """The state of the newest checkpoint, or a fresh one, with these parameters in place of its own where some are given."""
        state = checkpoints.restore_latest(self.abstract)
        fresh = state is None
        if state is None:
            state, _ = create_state(self.task, self._optimizer, self.settings.seed, self.mesh)
            state = with_params(state, params) if params is not None else state
        step = int(state.step)
        if step > self._train.num_steps:
            raise UserError(
                f"the newest checkpoint in {self.settings.workdir} is of step {step:,}, beyond train.num_steps "
                f"({self._train.num_steps:,}): raise it, or choose another --workdir"
            )
        going_on = "" if fresh else f"; going on from step {step:,}"
        trained = "" if self._trained is None else f", {self.num_trained:,} of them trained,"
        say(f"{self.num_parameters:,} parameters{trained} on {describe_devices()}{going_on}")
        return state

    def fit(
        self,
        state: TrainState,
        batches: Callable[[int, int], Iterator[Mapping[str, np.ndarray]]],
        evaluate: Evaluate,
        checkpoints: Checkpoints,
        *,
        derive: Callable[[int, Mapping[str, float]], Mapping[str, float]] = lambda step, metrics: {},
        enough: Callable[[int], bool] = lambda step: False,
        headline: Sequence[str] = (),
    ) -> FitResult:
        """Train to the end or to a signal; arguments are as in `jaxbert.train.loop.fit`, `headline` as in `make_trackers`."""
        settings, train = self.settings, self._train
        schedule = make_schedule(settings.optimizer, train.num_steps)
        train_step = make_train_step(
            self.task,
            self._optimizer,
            schedule,
            self.shardings,
            self.mesh,
            seed=settings.seed,
            accumulation_steps=train.accumulation_steps,
            trained=self._trained,
        )
        assert dataclasses.is_dataclass(settings)
        tracker = make_trackers(
            settings.tracking,
            settings.workdir,
            name=settings.name,
            num_steps=train.num_steps,
            resume_step=int(state.step),
            run_config=dataclasses.asdict(settings),
            headline=headline,
        )
        try:
            return fit(
                state=state,
                train_step=train_step,
                batches=batches,
                put=self.put,
                evaluate=evaluate,
                loss_weights=self.task.loss_weights,
                checkpoints=checkpoints,
                tracker=tracker,
                train=train,
                checkpoint=settings.checkpoint,
                workdir=settings.workdir,
                derive=derive,
                enough=enough,
            )
        finally:
            tracker.close()
