"""One training run: a folder that holds its settings, its log and its state, and that can be gone on with."""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from threading import Event
from typing import Generic, TypeVar

from torch import Tensor, nn

from mc_core.lab.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mc_core.lab.training.device import on_device
from mc_core.lab.training.prefetch import prefetched
from mc_core.lab.training.progress import Means, Report, RunLog, TrainProgress
from mc_core.lab.training.run_config import RunConfig
from mc_core.models.loading import read_json, write_json

C = TypeVar("C", bound=RunConfig)
B = TypeVar("B")


class Trainer(ABC, Generic[C, B]):
    """Networks, optimizers and counters of one run; ``learn`` is the only thing that changes them.

    network: what learns. step, tokens: what was done so far. figures: those last told. What a step does depends on
    ``tensors``, the settings and its number alone, so that a resumed run is the same run.
    """

    batches_a_step = 1

    def __init__(self, config: C, network: nn.Module) -> None:
        self.config, self.network = config, network
        self.step = self.tokens = 0
        self.means, self.figures = Means(), dict[str, float]()

    @abstractmethod
    def batch(self, number: int) -> B:
        """The batch of a number, from 0, on the CPU."""

    @abstractmethod
    def backward(self, batch: B) -> None:
        """Add the batch's gradients; count its tokens and, in ``means``, its losses."""

    @abstractmethod
    def update(self, rate: float) -> None:
        """One update of all optimizers from the clipped gradients; rate: share of the full one."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name; live tensors."""

    def note(self) -> str:
        """A word on the present step, for reports."""
        return ""

    def measured(self) -> TrainProgress | None:
        """Called after each step: a report of what is measured now and then, or None."""
        return None

    @property
    def finished(self) -> bool:
        """All steps done? Else the run was stopped and can be resumed."""
        return self.step >= self.config.steps

    def learn(self, batches: Iterable[B]) -> None:
        """One step, from all of the batches."""
        for batch in batches:
            self.backward(on_device(batch, self.config.device))
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.update(self.config.rate_at(self.step))
        self.network.zero_grad(set_to_none=True)
        self.step += 1

    def take_figures(self) -> dict[str, float]:
        """Means since the last call; "loss" is what was optimised."""
        return self.means.take()

    def save(self) -> None:
        """Write a checkpoint."""
        state = {"tokens": self.tokens, "config": self.config.summary()}
        save_checkpoint(self.config.checkpoints, self.step, self.tensors(), state)

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run's folder, if it has one; ConfigError if that is another run's."""
        found = checkpoints(self.config.checkpoints)
        if found:
            self.config.check_resumes(read_json(found[-1] / "state.json")["config"])
            state = load_checkpoint(found[-1], self.tensors())
            self.step, self.tokens = int(state["step"]), int(state["tokens"])
        write_json(self.config.out / "config.json", self.config.summary())


def train(trainer: Trainer[C, B], report: Report, stop: Event | None = None) -> None:
    """Train to the end, or until ``stop`` is set; either way the run's folder holds its state.

    Appends to ``log.jsonl`` there. Without ``stop``, SIGTERM and SIGINT save and stop.
    """
    config, log = trainer.config, RunLog(trainer.config.out / "log.jsonl")
    saved, each = time.monotonic(), trainer.batches_a_step
    speed = _Speed(trainer.tokens)
    batches = prefetched(trainer.batch, trainer.step * each, config.steps * each, config.workers)

    def tell(progress: TrainProgress) -> None:
        log.write(progress)
        report(progress)

    with stop_on_signals() if stop is None else nullcontext(stop) as stopped:
        while not trainer.finished and not stopped.is_set():
            trainer.learn(islice(batches, each))
            if trainer.step % config.log_steps == 0 or trainer.finished:
                trainer.figures = trainer.take_figures()
                tell(_progress(trainer, speed.since(trainer.tokens)))
            measured = trainer.measured()
            if measured is not None:
                tell(measured)
            if time.monotonic() - saved >= 60 * config.checkpoint_minutes:
                trainer.save()
                saved = time.monotonic()
    trainer.save()


def _progress(trainer: Trainer[C, B], speed: float) -> TrainProgress:
    losses = {name: value for name, value in trainer.figures.items() if name != "answers"}
    answers = trainer.figures.get("answers")
    steps = trainer.config.steps
    return TrainProgress("train", trainer.step, steps, trainer.note(), trainer.tokens, losses, answers, speed)


class _Speed:
    """Tokens a second between two looks."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.at = tokens, time.monotonic()

    def since(self, tokens: int) -> float:
        """Since the last look, when there were fewer tokens."""
        now = time.monotonic()
        speed = (tokens - self.tokens) / max(now - self.at, 1e-9)
        self.tokens, self.at = tokens, now
        return speed


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """An event that SIGTERM or SIGINT sets, for the time of the block; main thread only."""
    stop = Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: stop.set())
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
