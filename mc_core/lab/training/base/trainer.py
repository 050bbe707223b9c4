"""Trains a base from nothing: tokenizer, cache, curriculum, checkpoints. A run is a folder and can be resumed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mc_core.lab.data.cache import open_cache, prepare_cache
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.data.train_tokenizer import train_tokenizer, write_tokenizer
from mc_core.lab.training.ahead import made_ahead
from mc_core.lab.training.base.base_config import BaseTrainConfig
from mc_core.lab.training.base.batches import Batch, check_stages, make_batch, stage_of
from mc_core.lab.training.base.model import BaseModel, initialise
from mc_core.lab.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mc_core.lab.training.device import on_device
from mc_core.lab.training.optim import AdamW, Muon, split_parameters
from mc_core.lab.training.progress import Averages, RunLog, TrainProgress
from mc_core.lab.training.samples import SampleMaker
from mc_core.lab.training.schedule import rate_at
from mc_core.models.decoder import Decoder
from mc_core.models.loading import read_json, write_json

Report = Callable[[TrainProgress], None]


@dataclass(frozen=True)
class TrainedBase:
    """What a run made. finished: all steps done (else it was stopped and can be resumed)."""

    decoder: Decoder
    tokenizer: Tokenizer
    step: int
    tokens: int
    finished: bool
    losses: dict[str, float]


class Trainer:
    """Model, optimizers and counters of one run; ``learn`` is the only thing that changes them."""

    def __init__(self, config: BaseTrainConfig, maker: SampleMaker, vocab_size: int) -> None:
        self.config, self.maker = config, maker
        decoder = Decoder(config.shape.config(vocab_size))
        initialise(decoder, config.seed)
        self.model = BaseModel(decoder.to(config.device))
        if config.compile:
            decoder.compile_layers()
        matrices, rest = split_parameters(decoder)
        products = torch.bfloat16 if config.bfloat16 else torch.float32
        self.muon, self.adam = Muon(matrices, config.weight_decay, products), AdamW(rest)
        self.done = self.tokens = 0
        self.averages = Averages()

    def batch(self, step: int) -> Batch:
        """The batch of a step, on the CPU."""
        config = self.config
        stage = stage_of(config.stages, step, config.steps)
        return make_batch(self.maker, stage, config.batch_tokens, config.history_weight, config.seed, step)

    def learn(self, batch: Batch) -> None:
        """One step."""
        config = self.config
        batch = on_device(batch, config.device)
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.bfloat16):
            losses, right = self.model.token_losses(batch)
        loss = (losses * batch.weights).sum() / batch.weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        rate = rate_at(self.done, config.steps, config.warmup_steps, config.decay, config.floor)
        self.muon.step(rate * config.muon_rate)
        self.adam.step(rate * config.adam_rate, self.done + 1)
        self.model.zero_grad(set_to_none=True)
        self.averages.add(batch, losses, right, loss)
        self.done += 1
        self.tokens += batch.ids.numel()

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name; live tensors."""
        weights = {f"model.{name}": p.detach() for name, p in self.model.decoder.named_parameters()}
        return {**weights, **self.muon.state(), **self.adam.state()}

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        state = {"tokens": self.tokens, "config": self.config.summary()}
        save_checkpoint(folder, self.done, self.tensors(), state)

    def resume(self, folder: Path) -> bool:
        """Go on from the newest checkpoint of ``folder``, if it has one."""
        found = checkpoints(folder)
        if found:
            self.config.check_resumes(read_json(found[-1] / "state.json")["config"])
        state = load_checkpoint(folder, self.tensors())
        if state is None:
            return False
        self.done, self.tokens = int(state["step"]), int(state["tokens"])
        return True


def train_base(config: BaseTrainConfig, report: Report, stop: Event | None = None) -> TrainedBase:
    """Train to the end, or until ``stop`` is set; either way the run's folder holds its state.

    Also writes ``config.json`` (settings) and ``log.jsonl`` there. Without ``stop``, SIGTERM and SIGINT save and stop.
    """
    run = config.out
    run.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(config, report)
    prepare_cache(config.data, tokenizer, run / "cache", lambda name, n: report(TrainProgress("cache", n, 0, name)))
    maker = SampleMaker(open_cache(run / "cache", "train"), ChatEncoder(tokenizer), config.mix)
    check_stages(maker, config.stages, config.seed)
    trainer = Trainer(config, maker, tokenizer.get_vocab_size())
    trainer.resume(run / "checkpoints")
    write_json(run / "config.json", config.summary())
    if stop is not None:
        losses = _loop(trainer, report, stop)
    else:
        with stop_on_signals() as signalled:
            losses = _loop(trainer, report, signalled)
    finished = trainer.done >= config.steps
    return TrainedBase(trainer.model.decoder, tokenizer, trainer.done, trainer.tokens, finished, losses)


def _loop(trainer: Trainer, report: Report, stop: Event) -> dict[str, float]:
    config, log = trainer.config, RunLog(trainer.config.out / "log.jsonl")
    began = saved = logged = time.monotonic()
    tokens, losses = trainer.tokens, dict[str, float]()
    for batch in made_ahead(trainer.batch, trainer.done, config.steps, config.workers):
        if stop.is_set():
            break
        trainer.learn(batch)
        now = time.monotonic()
        if trainer.done % config.log_steps == 0 or trainer.done == config.steps:
            losses = trainer.averages.take()
            speed = (trainer.tokens - tokens) / max(now - logged, 1e-9)
            progress = _progress(trainer, losses, speed)
            log.write(progress, now - began)
            report(progress)
            logged, tokens = now, trainer.tokens
        if now - saved >= 60 * config.checkpoint_minutes:
            trainer.save(config.out / "checkpoints")
            saved = time.monotonic()
    trainer.save(config.out / "checkpoints")
    return losses


def _progress(trainer: Trainer, losses: dict[str, float], speed: float) -> TrainProgress:
    shown = {name: value for name, value in losses.items() if name != "answers"}
    stage = stage_of(trainer.config.stages, trainer.done - 1, trainer.config.steps)
    note = f"sequences of {stage.length}"
    steps = trainer.config.steps
    return TrainProgress("train", trainer.done, steps, note, trainer.tokens, shown, losses.get("answers"), speed)


def _tokenizer(config: BaseTrainConfig, report: Report) -> Tokenizer:
    """The run's tokenizer: its own from an earlier start, the given one, or a new one."""
    path = config.out / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    if config.tokenizer is not None:
        tokenizer = Tokenizer.from_file(str(config.tokenizer / "tokenizer.json"))
        write_tokenizer(config.out, tokenizer, config.shape.max_positions)
        return tokenizer
    chars = config.tokenizer_chars
    told = lambda n: report(TrainProgress("tokenizer", min(n, chars), chars))  # noqa: E731
    return train_tokenizer(config.data, config.out, config.vocab_size, chars, config.shape.max_positions, told)


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
