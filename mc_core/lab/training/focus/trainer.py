"""Trains GistNet for a base, or both together."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

import torch
from torch import Tensor, nn

from mc_core.bundle.bundle import ADAPTERS, GISTNET, Bundle, load_bundle, make_gistnet, read_tensors
from mc_core.errors import ConfigError
from mc_core.lab.data.cache import Stream
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.training.base.batches import Batch
from mc_core.lab.training.base.counted import count_batch
from mc_core.lab.training.base.model import BaseModel
from mc_core.lab.training.checkpoint import checkpoints
from mc_core.lab.training.focus.batch import FocusBatch
from mc_core.lab.training.focus.draw import FocusBatches
from mc_core.lab.training.focus.focus_training import FocusTrainConfig
from mc_core.lab.training.focus.model import FocusModel
from mc_core.lab.training.focus.process import BatchProcessor
from mc_core.lab.training.focus.rarity import fit_rarity
from mc_core.lab.training.focus.served import ServedQuestions
from mc_core.lab.training.optim import AdamW, decoder_optimizers
from mc_core.lab.training.progress import Report
from mc_core.lab.training.run import Trainer, train
from mc_core.lab.training.run_data import model_tokenizer, training_streams
from mc_core.lab.training.sample_maker import SampleMaker
from mc_core.lab.training.vocabulary import token_counts
from mc_core.models.loading import find_gguf
from mc_core.models.low_rank import LowRank
from mc_core.nets.excerpt_gistnet import ExcerptGistNet
from mc_core.nets.gist_maker import GistMaker
from mc_core.positions.policies import make_policy


class FocusTrainer(Trainer[FocusTrainConfig, Batch | FocusBatch]):
    """Trains a GistNet and, in a joint run, the base that reads its gists."""

    def __init__(self, config: FocusTrainConfig, samples: SampleMaker) -> None:
        """samples: where passages are cut from, and the base's own batches in a joint run."""
        bundle = load_bundle(config.model, config.device, block_size=config.block_size, gists=False)
        gistnet, low_rank = _gistnet(config, bundle, samples.streams), _low_rank(config, bundle)
        policy = make_policy(bundle.positions, bundle.decoder.config, config.block_size, bundle.sigma_scale)
        self.model = FocusModel(bundle.decoder, gistnet, policy, low_rank)
        super().__init__(config, self.model)
        self.batches_a_step = config.accumulate
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
        self.muon, self.adam = decoder_optimizers(bundle.decoder, config.weight_decay, config.dtype)
        self.gist_adam = AdamW({name: p for name, p in self._beside().items() if p.requires_grad})

    def _beside(self) -> dict[str, nn.Parameter]:
        """What the run makes beside the base; a GistNet that was fitted to a corpus has no gradient."""
        parts = {"gistnet": self.model.gistnet, "low_rank": self.model.low_rank}
        named = [(part, *each) for part, net in parts.items() if net is not None for each in net.named_parameters()]
        return {f"{part}.{name}": parameter for part, name, parameter in named}

    def batch(self, number: int) -> Batch | FocusBatch:
        return self.batches.batch(number)

    def backward(self, batch: Batch | FocusBatch) -> None:
        with self.config.autocast():
            loss = self._focus_loss(batch) if isinstance(batch, FocusBatch) else self._base_loss(batch)
        # A batch that shows no gist teaches a frozen run nothing.
        if loss.requires_grad:
            (loss / self.config.accumulate).backward()  # type: ignore[no-untyped-call]

    def _base_loss(self, batch: Batch) -> Tensor:
        losses, right = self.base.token_losses(batch)
        loss = (losses * batch.weights).sum() / batch.weights.sum()
        self.means.add("base_loss", loss)
        count_batch(self.means, batch, losses, right, "base_")
        self.tokens += batch.ids.numel()
        return loss

    def _focus_loss(self, batch: FocusBatch) -> Tensor:
        losses = self.processor.losses(batch)
        for name, value in losses.figures().items():
            self.means.add(name, value)
        self.tokens += batch.seen.ids.numel()
        return losses.total

    def update(self, rate: float) -> None:
        if self.config.mode == "joint":
            self.muon.step(rate * self.config.muon_rate)
            self.adam.step(rate * self.config.adam_rate, self.step + 1)
        if all(p.grad is not None for p in self.gist_adam.parameters.values()):
            self.gist_adam.step(rate * self.config.gist_rate, self.step + 1)

    def take_figures(self) -> dict[str, float]:
        """Means since the last call; those of the base's own batches begin with "base_"."""
        means = super().take_figures()
        return {**means, "loss": means.get("token", means.get("base_loss", 0.0))}

    def tensors(self) -> dict[str, Tensor]:
        # A frozen base is not among them.
        weights = {name: p.detach() for name, p in self._beside().items()}
        if self.config.mode == "joint":
            weights |= {f"model.{name}": p.detach() for name, p in self.model.decoder.named_parameters()}
        adam = {f"base.{name}": tensor for name, tensor in self.adam.state().items()}
        return {**weights, **self.muon.state(), **adam, **self.gist_adam.state()}

    def note(self) -> str:
        return self.config.mode


def train_focus(config: FocusTrainConfig, report: Report, stop: Event | None = None) -> FocusTrainer:
    """See ``train``; the trainer as the run left it, its networks in eval mode."""
    if config.mode == "joint" and find_gguf(config.model) is not None:
        raise ConfigError(f"mode must be frozen or adapted for a GGUF file, as {config.model} is one")
    config.out.mkdir(parents=True, exist_ok=True)
    tokenizer = model_tokenizer(config.model)
    streams = training_streams(config, tokenizer, report)
    trainer = FocusTrainer(config, SampleMaker(streams, ChatEncoder(tokenizer), config.mix))
    trainer.resume()
    train(trainer, report, stop)
    trainer.model.eval()
    return trainer


def _gistnet(config: FocusTrainConfig, bundle: Bundle, streams: Sequence[Stream]) -> GistMaker:
    """The one to begin with: the model's own, if that has the shape that is asked for. One that chooses excerpts is
    fitted to the streams, unless a checkpoint of the run has it already."""
    torch.manual_seed(config.seed)
    dim = bundle.decoder.config.hidden_size
    gistnet = make_gistnet(dim, config.block_size, config.gist.arguments(), bundle.decoder)
    if bundle.manifest.gistnet == config.gist.arguments():
        gistnet.load_state_dict(read_tensors(config.model / GISTNET))
    elif isinstance(gistnet, ExcerptGistNet) and not checkpoints(config.checkpoints):
        size = bundle.decoder.config.vocab_size
        embeddings = bundle.embed(torch.arange(size, device=config.device)).cpu()
        counts, word = token_counts(streams, size), torch.from_numpy(bundle.words.fold >= 0)
        fit_rarity(gistnet, embeddings, counts, word, config.seed)
    return gistnet.to(config.device)


def _low_rank(config: FocusTrainConfig, bundle: Bundle) -> LowRank | None:
    """Those to begin with: the model's own, if it has any and goes on with its GistNet."""
    if config.mode != "adapted":
        return None
    low_rank = LowRank(bundle.decoder, config.rank)
    if bundle.manifest.adapters == {"rank": config.rank} and bundle.manifest.gistnet == config.gist.arguments():
        low_rank.take(read_tensors(config.model / ADAPTERS))
    return low_rank


def _served(config: FocusTrainConfig, samples: SampleMaker) -> ServedQuestions | None:
    """Asks in contexts as the model to start from would serve them, on the CPU, in whichever process makes batches."""
    if not any(stage.served for stage in config.stages):
        return None
    bundle = load_bundle(config.model, "cpu")
    if config.mode == "frozen" and bundle.hidden_gists:
        raise ConfigError("mode must be joint where stages are served: this model hides gists, so that none is learned")
    return ServedQuestions(bundle, samples, config.recent_tokens, config.block_size)
