"""Trains GistNet for a base, or both together. A run is a folder and can be resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mc_core.bundle.bundle import load_bundle, make_gistnet
from mc_core.errors import ConfigError
from mc_core.lab.data.cache import open_cache, prepare_cache
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.training.ahead import made_ahead
from mc_core.lab.training.base.batches import Batch
from mc_core.lab.training.base.model import BaseModel
from mc_core.lab.training.base.trainer import stop_on_signals
from mc_core.lab.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mc_core.lab.training.device import on_device
from mc_core.lab.training.focus.batch import FocusBatch
from mc_core.lab.training.focus.draw import FocusBatches
from mc_core.lab.training.focus.focus_training import FocusTrainConfig
from mc_core.lab.training.focus.model import FocusModel
from mc_core.lab.training.focus.process import BatchProcessor
from mc_core.lab.training.focus.served import ServedQuestions
from mc_core.lab.training.optim import AdamW, Muon, split_parameters
from mc_core.lab.training.progress import Averages, RunLog, TrainProgress
from mc_core.lab.training.samples import SampleMaker
from mc_core.lab.training.schedule import rate_at
from mc_core.models.loading import read_json, write_json
from mc_core.positions.policies import make_policy

Report = Callable[[TrainProgress], None]


@dataclass(frozen=True, eq=False)
class TrainedFocus:
    """What a run made. finished: all steps done (else it was stopped and can be resumed)."""

    model: FocusModel
    step: int
    tokens: int
    finished: bool
    figures: dict[str, float]


class FocusTrainer:
    """Networks, optimizers and counters of one run; ``learn`` is the only thing that changes them."""

    def __init__(self, config: FocusTrainConfig, samples: SampleMaker) -> None:
        """samples: where passages are cut from, and the base's own batches in a joint run.

        GistNet goes on from the model's own, if that has the shape that is asked for.
        """
        bundle = load_bundle(config.model, config.device, block_size=config.block_size)
        torch.manual_seed(config.seed)
        gistnet = make_gistnet(bundle.decoder.config.hidden_size, config.block_size, config.gist.arguments())
        if bundle.manifest.gistnet == config.gist.arguments():
            gistnet.load_state_dict(bundle.gistnet.state_dict())
        gistnet = gistnet.to(config.device)
        policy = make_policy(bundle.positions, bundle.decoder.config, config.block_size, bundle.sigma_scale)
        self.config = config
        self.model = FocusModel(bundle.decoder, gistnet, policy)
        self.base = BaseModel(bundle.decoder)
        self.processor = BatchProcessor(self.model, config.weights)
        self.batches = FocusBatches(
            config, samples, self.processor.maker(), bundle.segment_blocks, _served(config, samples)
        )
        if config.compile:
            bundle.decoder.compile_layers()
        joint = config.mode == "joint"
        bundle.decoder.requires_grad_(joint)
        bundle.decoder.embed_tokens.requires_grad_(joint and config.train_embeddings)
        matrices, rest = split_parameters(bundle.decoder)
        products = torch.bfloat16 if config.bfloat16 else torch.float32
        self.muon, self.adam = Muon(matrices, config.weight_decay, products), AdamW(rest)
        self.gist_adam = AdamW({f"gistnet.{name}": p for name, p in gistnet.named_parameters()})
        self.done = self.tokens = 0
        self.sums: dict[str, list[Tensor]] = {}
        self.averages = Averages()

    def learn(self, batches: Iterator[Batch | FocusBatch]) -> None:
        """One step: gather gradients of the next ``accumulate`` batches and learn from them."""
        config = self.config
        for _ in range(config.accumulate):
            self._backward(next(batches))
        trained = [p for p in self.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(trained, config.clip)
        rate = rate_at(self.done, config.steps, config.warmup_steps, config.decay, config.floor)
        if config.mode == "joint":
            self.muon.step(rate * config.muon_rate)
            self.adam.step(rate * config.adam_rate, self.done + 1)
        if all(p.grad is not None for p in self.gist_adam.parameters.values()):
            self.gist_adam.step(rate * config.gist_rate, self.done + 1)
        self.model.zero_grad(set_to_none=True)
        self.done += 1

    def _backward(self, batch: Batch | FocusBatch) -> None:
        config = self.config
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.bfloat16):
            batch = on_device(batch, config.device)
            loss = self._focus_loss(batch) if isinstance(batch, FocusBatch) else self._base_loss(batch)
        # A batch that shows no gist teaches a frozen run nothing.
        if loss.requires_grad:
            (loss / config.accumulate).backward()  # type: ignore[no-untyped-call]

    def _base_loss(self, batch: Batch) -> Tensor:
        losses, right = self.base.token_losses(batch)
        loss = (losses * batch.weights).sum() / batch.weights.sum()
        self.tokens += batch.ids.numel()
        self.averages.add(batch, losses, right, loss)
        return loss

    def _focus_loss(self, batch: FocusBatch) -> Tensor:
        losses = self.processor.losses(batch)
        for name, value in losses.figures().items():
            self._count(name, value)
        self.tokens += batch.seen.ids.numel()
        return losses.total

    def _count(self, name: str, value: Tensor) -> None:
        self.sums.setdefault(name, []).append(value.detach())

    def figures(self) -> dict[str, float]:
        """Means since the last call; "base_" and a name of ``Averages``: of the base's own batches."""
        means = {name: float(torch.stack(values).mean()) for name, values in self.sums.items()}
        self.sums = {}
        base = {f"base_{name}": value for name, value in self.averages.take().items()}
        return {**means, **base, "loss": means.get("token", base.get("base_loss", 0.0))}

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name; live tensors. A frozen base is not among them."""
        weights = {f"gistnet.{name}": p.detach() for name, p in self.model.gistnet.named_parameters()}
        if self.config.mode == "joint":
            weights |= {f"model.{name}": p.detach() for name, p in self.model.decoder.named_parameters()}
        adam = {f"base.{name}": tensor for name, tensor in self.adam.state().items()}
        return {**weights, **self.muon.state(), **adam, **self.gist_adam.state()}

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


def train_focus(config: FocusTrainConfig, report: Report, stop: Event | None = None) -> TrainedFocus:
    """Train to the end, or until ``stop`` is set; either way the run's folder holds its state.

    Also writes ``config.json`` (settings) and ``log.jsonl`` there. Without ``stop``, SIGTERM and SIGINT save and stop.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.model / "tokenizer.json"
    if not path.exists():
        raise ConfigError(f"model: {config.model} has no tokenizer.json")
    tokenizer, cache = Tokenizer.from_file(str(path)), config.out / "cache"
    prepare_cache(config.data, tokenizer, cache, lambda name, n: report(TrainProgress("cache", n, 0, name)))
    trainer = FocusTrainer(config, SampleMaker(open_cache(cache, "train"), ChatEncoder(tokenizer), config.mix))
    trainer.resume()
    write_json(config.out / "config.json", config.summary())
    if stop is not None:
        figures = _loop(trainer, report, stop)
    else:
        with stop_on_signals() as signalled:
            figures = _loop(trainer, report, signalled)
    trainer.model.eval()
    return TrainedFocus(trainer.model, trainer.done, trainer.tokens, trainer.done >= config.steps, figures)


def _served(config: FocusTrainConfig, samples: SampleMaker) -> ServedQuestions | None:
    """Asks in contexts as the model to start from would serve them, on the CPU, in whichever process makes batches."""
    if not any(stage.served for stage in config.stages):
        return None
    bundle = load_bundle(config.model, "cpu")
    if config.mode == "frozen" and bundle.hidden_gists:
        raise ConfigError("mode must be joint where stages are served: this model hides gists, so that none is learned")
    return ServedQuestions(bundle, samples, config.recent_tokens, config.block_size)


def _loop(trainer: FocusTrainer, report: Report, stop: Event) -> dict[str, float]:
    config, log = trainer.config, RunLog(trainer.config.out / "log.jsonl")
    began = saved = logged = time.monotonic()
    tokens, figures = trainer.tokens, dict[str, float]()
    first, end = (step * config.accumulate for step in (trainer.done, config.steps))
    batches = made_ahead(trainer.batches.batch, first, end, config.workers)
    while trainer.done < config.steps and not stop.is_set():
        trainer.learn(batches)
        now = time.monotonic()
        if trainer.done % config.log_steps == 0 or trainer.done == config.steps:
            figures = trainer.figures()
            speed = (trainer.tokens - tokens) / max(now - logged, 1e-9)
            progress = TrainProgress(
                "train", trainer.done, config.steps, config.mode, trainer.tokens, figures, None, speed
            )
            log.write(progress, now - began)
            report(progress)
            logged, tokens = now, trainer.tokens
        if now - saved >= 60 * config.checkpoint_minutes:
            trainer.save()
            saved = time.monotonic()
    trainer.save()
    return figures
