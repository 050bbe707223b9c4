"""Trains LensNet for a frozen base. A run is a folder and can be resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from tokenizers import Tokenizer
from torch import Tensor

from mc_core.bundle.bundle import load_bundle
from mc_core.errors import ConfigError
from mc_core.lab.data.cache import Stream, open_cache, prepare_cache
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.training.ahead import made_ahead
from mc_core.lab.training.base.trainer import stop_on_signals
from mc_core.lab.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mc_core.lab.training.device import on_device
from mc_core.lab.training.haystack import Haystack
from mc_core.lab.training.lens.bank import Bank
from mc_core.lab.training.lens.batch import LensBatch, collate
from mc_core.lab.training.lens.draw import draw_samples
from mc_core.lab.training.lens.entries import entry_losses
from mc_core.lab.training.lens.history import kept_apart
from mc_core.lab.training.lens.keys import KeyModel, with_wrong
from mc_core.lab.training.lens.labels import EntryBatch, make_labels, open_labels
from mc_core.lab.training.lens.lens_training import LensTrainConfig
from mc_core.lab.training.lens.recall import recall_figures
from mc_core.lab.training.optim import AdamW
from mc_core.lab.training.progress import RunLog, TrainProgress
from mc_core.lab.training.schedule import rate_at
from mc_core.models.loading import read_json, write_json
from mc_core.nets.lens_keys import whiten
from mc_core.nets.lensnet import LensNet, LensNetConfig

Report = Callable[[TrainProgress], None]
VALIDATION_SEED = 7


@dataclass(frozen=True, eq=False)
class TrainedLens:
    """What a run made. finished: all steps done (else it was stopped and can be resumed)."""

    net: LensNet
    step: int
    finished: bool
    figures: dict[str, float]


class LensTrainer:
    """Network, optimizer, bank and counters of one run; ``learn`` is the only thing that changes them."""

    def __init__(self, config: LensTrainConfig, streams: Sequence[Stream], tokenizer: Tokenizer) -> None:
        """streams: the corpus without what is kept for evaluation."""
        bundle = load_bundle(config.model, config.device, block_size=config.block_size)
        bundle.decoder.requires_grad_(False)
        torch.manual_seed(config.seed)
        self.maker = Haystack(streams, ChatEncoder(tokenizer), config.mix)
        net = LensNet(LensNetConfig(bundle.decoder.config.hidden_size, **asdict(config.net))).to(config.device)
        self.config, self.bundle, self.net = config, bundle, net
        generator = torch.Generator().manual_seed(config.seed)
        vocabulary = torch.arange(tokenizer.get_vocab_size(), device=config.device)
        for enter in (net.key_net.enter, net.query_net.enter):
            whiten(enter, bundle.embed(vocabulary), generator)
        self.model = KeyModel(net, bundle.embed)
        self.bank = Bank(self.model, self.maker, config.bank, config.fresh, config.block_size)
        self.adam = AdamW(dict(net.named_parameters()))
        self.labels: EntryBatch | None = None
        self.done = self.tokens = 0
        self.sums: dict[str, list[Tensor]] = {}

    def batch(self, step: int) -> LensBatch:
        """The samples of a step, on the CPU."""
        rng = np.random.default_rng([self.config.seed, step])
        return collate(draw_samples(rng, self.maker, self.config, step))

    def learn(self, batch: LensBatch) -> None:
        """One step."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.done, 1])
        loss = self._key_loss(rng, on_device(batch, config.device))
        if self.labels is not None:
            loss = loss + self._entry_loss(rng, self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        trained = {name: p for name, p in self.adam.parameters.items() if p.grad is not None}
        torch.nn.utils.clip_grad_norm_(trained.values(), config.clip)
        for parameter in self.adam.parameters.values():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        rate = rate_at(self.done, config.steps, config.warmup_steps, config.decay, config.floor)
        self.adam.step(rate * config.rate, self.done + 1)
        self.net.zero_grad(set_to_none=True)
        self.done += 1

    def _key_loss(self, rng: Generator, batch: LensBatch) -> Tensor:
        config = self.config
        self.bank.refresh(rng)
        queries = self.model.queries(batch.tails, batch.tail_mask)
        batch = with_wrong(batch, self.bank.hardest(queries.detach(), config.hard))
        losses = self.model.losses(batch, queries, config.temperature, config.softness_at(self.done))
        self.tokens += batch.blocks.numel()
        for name, loss in losses.items():
            self._count(name, loss)
        shares = {name: config.shares.get(name, 1.0) for name in losses}
        total = torch.stack([shares[name] * loss for name, loss in losses.items()]).sum() / sum(shares.values())
        self._count("loss", total)
        return total

    def _entry_loss(self, rng: Generator, labels: EntryBatch) -> Tensor:
        chosen = torch.from_numpy(rng.integers(0, len(labels), self.config.entry_contexts))
        batch = labels.rows(chosen, self.model.device)
        losses = entry_losses(self.net, self.bundle.embed, batch, self.config.weights)
        for name, loss in losses.items():
            self._count(name, loss)
        return losses["entries"]

    def _count(self, name: str, value: Tensor) -> None:
        self.sums.setdefault(name, []).append(value.detach())

    def figures(self) -> dict[str, float]:
        """Mean losses since the last call."""
        means = {name: float(torch.stack(values).mean()) for name, values in self.sums.items()}
        self.sums = {}
        return means

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name; live tensors."""
        weights = {f"lensnet.{name}": p.detach() for name, p in self.net.named_parameters()}
        return {**weights, **self.adam.state(), **self.bank.tensors()}

    def save(self) -> None:
        """Write a checkpoint."""
        state = {"tokens": self.tokens, "config": self.config.summary()}
        save_checkpoint(self.config.out / "checkpoints", self.done, self.tensors(), state)

    def resume(self) -> bool:
        """Go on from the newest checkpoint of the run's folder, if it has one."""
        folder = self.config.out / "checkpoints"
        found = checkpoints(folder)
        if found:
            self.config.check_resumes(read_json(found[-1] / "state.json")["config"])
        state = load_checkpoint(folder, self.tensors())
        if state is None:
            return False
        self.done, self.tokens = int(state["step"]), int(state["tokens"])
        return True


def train_lens(config: LensTrainConfig, report: Report, stop: Event | None = None) -> TrainedLens:
    """Train to the end, or until ``stop`` is set; either way the run's folder holds its state.

    Also writes ``config.json`` (settings) and ``log.jsonl`` there. Without ``stop``, SIGTERM and SIGINT save and stop.
    """
    trainer = open_run(config, report)
    if stop is not None:
        figures = _loop(trainer, report, stop)
    else:
        with stop_on_signals() as signalled:
            figures = _loop(trainer, report, signalled)
    return TrainedLens(trainer.net.eval(), trainer.done, trainer.done >= config.steps, figures)


def open_run(config: LensTrainConfig, report: Report) -> LensTrainer:
    """The run of ``config.out`` as its newest checkpoint left it, or a new one; its corpus is tokenised if need be."""
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.model / "tokenizer.json"
    if not path.exists():
        raise ConfigError(f"model: {config.model} has no tokenizer.json")
    tokenizer, cache = Tokenizer.from_file(str(path)), config.out / "cache"
    prepare_cache(config.data, tokenizer, cache, lambda name, n: report(TrainProgress("cache", n, 0, name)))
    trainer = LensTrainer(config, kept_apart(open_cache(cache, "train"), kept=False), tokenizer)
    if config.labels:
        trainer.labels = _labels(trainer, report)
    trainer.resume()
    write_json(config.out / "config.json", config.summary())
    return trainer


def _labels(trainer: LensTrainer, report: Report) -> EntryBatch:
    """The run's counterfactual labels, made the first time."""
    config = trainer.config

    def make() -> EntryBatch:
        told = lambda n: report(TrainProgress("labels", n, config.labels))  # noqa: E731
        return make_labels(trainer.bundle, trainer.maker, config.tasks, config.labels, config.seed, told)

    return open_labels(config.out / "labels.safetensors", make, config.labels)


def validate(trainer: LensTrainer, histories: int) -> dict[str, Any]:
    """Recall (``recall_figures``) on text that training does not see, with held-out episodes."""
    config, cache = trainer.config, trainer.config.out / "cache"
    streams = kept_apart(open_cache(cache, "train"), kept=True) + open_cache(cache, "held_out")
    maker = Haystack(streams, trainer.maker.encoder, held_out=True)
    rng = np.random.default_rng(VALIDATION_SEED)
    size, count = config.block_size, config.validation_blocks
    words = trainer.bundle.words
    return recall_figures(rng, trainer.model, maker, config.tasks, count, histories, size, words)


def _loop(trainer: LensTrainer, report: Report, stop: Event) -> dict[str, float]:
    config, log = trainer.config, RunLog(trainer.config.out / "log.jsonl")
    began = saved = logged = time.monotonic()
    tokens, figures = trainer.tokens, dict[str, float]()
    for batch in made_ahead(trainer.batch, trainer.done, config.steps, config.workers):
        if stop.is_set():
            break
        trainer.learn(batch)
        now = time.monotonic()
        if trainer.done % config.log_steps == 0 or trainer.done == config.steps:
            figures = trainer.figures()
            speed = (trainer.tokens - tokens) / max(now - logged, 1e-9)
            progress = TrainProgress("train", trainer.done, config.steps, "", trainer.tokens, figures, None, speed)
            log.write(progress, now - began)
            report(progress)
            logged, tokens = now, trainer.tokens
        if trainer.done % config.validation_steps == 0 and trainer.done < config.steps:
            _report_recall(trainer, log, report, now - began)
        if now - saved >= 60 * config.checkpoint_minutes:
            trainer.save()
            saved = time.monotonic()
    trainer.save()
    return figures


def _report_recall(trainer: LensTrainer, log: RunLog, report: Report, seconds: float) -> None:
    """A short validation on the way: the learned lens' share of facts found, by task."""
    found = {task: row["found"] for task, row in validate(trainer, trainer.config.glances)["learned"].items()}
    mean = sum(found.values()) / max(1, len(found))
    config = trainer.config
    progress = TrainProgress("recall", trainer.done, config.steps, "", trainer.tokens, found, mean)
    log.write(progress, seconds)
    report(progress)
