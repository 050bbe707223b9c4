"""Trains LensNet for a frozen base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from tokenizers import Tokenizer
from torch import Tensor, nn

from mc_core.bundle.bundle import load_bundle
from mc_core.lab.data.cache import Stream, open_cache
from mc_core.lab.data.chat_format import ChatEncoder
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
from mc_core.lab.training.lens.words import taught_words
from mc_core.lab.training.optim import AdamW
from mc_core.lab.training.progress import Report, TrainProgress
from mc_core.lab.training.run import Trainer, train
from mc_core.lab.training.run_data import model_tokenizer, training_streams
from mc_core.nets.lens_keys import whiten
from mc_core.nets.lensnet import LensNet, LensNetConfig

VALIDATION_SEED = 7


class LensTrainer(Trainer[LensTrainConfig, LensBatch]):
    """Trains a LensNet, with a bank of hard negatives and labels of entries."""

    def __init__(self, config: LensTrainConfig, streams: Sequence[Stream], tokenizer: Tokenizer) -> None:
        """streams: the corpus without what is kept for evaluation."""
        bundle = load_bundle(config.model, config.device, block_size=config.block_size)
        bundle.decoder.requires_grad_(False)
        torch.manual_seed(config.seed)
        self.maker = Haystack(streams, ChatEncoder(tokenizer), config.mix)
        net = LensNet(LensNetConfig(bundle.decoder.config.hidden_size, **asdict(config.net))).to(config.device)
        super().__init__(config, net)
        self.bundle, self.net = bundle, net
        generator = torch.Generator().manual_seed(config.seed)
        vocabulary = torch.arange(tokenizer.get_vocab_size(), device=config.device)
        self.model = KeyModel(net, bundle.embed)
        for enter in (self.model.key_net.enter, self.model.query_net.enter):
            whiten(enter, bundle.embed(vocabulary), generator)
        if net.word_net is not None:
            taught_words(net.word_net, bundle, tokenizer, streams, config)
        self.bank = Bank(self.model, self.maker, config.bank, config.fresh, config.block_size)
        if not config.labels:
            # What nobody trains shall say nothing of an entry.
            for parameter in net.leave[1].parameters():
                nn.init.zeros_(parameter)
        self.adam = AdamW({name: p for name, p in net.named_parameters() if p.requires_grad})
        self.labels: EntryBatch | None = None

    def batch(self, number: int) -> LensBatch:
        rng = np.random.default_rng([self.config.seed, number])
        return collate(draw_samples(rng, self.maker, self.config, number))

    def backward(self, batch: LensBatch) -> None:
        rng = np.random.default_rng([self.config.seed, self.step, 1])
        loss = self._key_loss(rng, batch)
        if self.labels is not None:
            loss = loss + self._entry_loss(rng, self.labels)
        loss.backward()  # type: ignore[no-untyped-call]

    def _key_loss(self, rng: Generator, batch: LensBatch) -> Tensor:
        config = self.config
        self.bank.refresh(rng)
        queries = self.model.queries(batch.tails, batch.tail_mask)
        batch = with_wrong(batch, self.bank.hardest(queries.detach(), config.hard))
        losses = self.model.losses(batch, queries, config.temperature, config.softness_at(self.step))
        self.tokens += batch.blocks.numel()
        for name, loss in losses.items():
            self.means.add(name, loss)
        shares = {name: config.shares.get(name, 1.0) for name in losses}
        total = torch.stack([shares[name] * loss for name, loss in losses.items()]).sum() / sum(shares.values())
        self.means.add("loss", total)
        return total

    def _entry_loss(self, rng: Generator, labels: EntryBatch) -> Tensor:
        chosen = torch.from_numpy(rng.integers(0, len(labels), self.config.entry_contexts))
        batch = labels.rows(chosen, self.model.device)
        losses = entry_losses(self.net, self.bundle.embed, batch, self.config.weights)
        for name, loss in losses.items():
            self.means.add(name, loss)
        return losses["entries"]

    def update(self, rate: float) -> None:
        for parameter in self.adam.parameters.values():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self.adam.step(rate * self.config.rate, self.step + 1)

    def tensors(self) -> dict[str, Tensor]:
        weights = {f"lensnet.{name}": p.detach() for name, p in self.net.named_parameters()}
        return {**weights, **self.adam.state(), **self.bank.tensors()}

    def measured(self) -> TrainProgress | None:
        """A short validation on the way: the learned lens' share of facts found, by task."""
        config = self.config
        if self.step % config.validation_steps or self.finished:
            return None
        found = {task: row["found"] for task, row in validate(self, config.glances)["learned"].items()}
        mean = sum(found.values()) / max(1, len(found))
        return TrainProgress("recall", self.step, config.steps, "", self.tokens, found, mean)


def train_lens(config: LensTrainConfig, report: Report, stop: Event | None = None) -> LensTrainer:
    """See ``train``; the trainer as the run left it, its network in eval mode."""
    trainer = open_run(config, report)
    train(trainer, report, stop)
    trainer.net.eval()
    return trainer


def open_run(config: LensTrainConfig, report: Report) -> LensTrainer:
    """The run of ``config.out`` as its newest checkpoint left it, or a new one; its corpus is tokenised if need be."""
    config.out.mkdir(parents=True, exist_ok=True)
    tokenizer = model_tokenizer(config.model)
    streams = training_streams(config, tokenizer, report)
    trainer = LensTrainer(config, kept_apart(streams, kept=False), tokenizer)
    if config.labels:
        trainer.labels = _labels(trainer, report)
    trainer.resume()
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
