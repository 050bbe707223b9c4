"""Trains a base from nothing: its tokenizer, and a curriculum of batches."""

from __future__ import annotations

from threading import Event

from tokenizers import Tokenizer
from torch import Tensor

from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.data.train_tokenizer import train_tokenizer, write_tokenizer
from mc_core.lab.training.base.base_config import BaseTrainConfig
from mc_core.lab.training.base.batches import Batch, check_stages, make_batch, stage_of
from mc_core.lab.training.base.counted import count_batch
from mc_core.lab.training.base.model import BaseModel, initialise
from mc_core.lab.training.optim import decoder_optimizers
from mc_core.lab.training.progress import Report, TrainProgress
from mc_core.lab.training.run import Trainer, train
from mc_core.lab.training.run_data import training_streams
from mc_core.lab.training.sample_maker import SampleMaker
from mc_core.models.decoder import Decoder


class BaseTrainer(Trainer[BaseTrainConfig, Batch]):
    """Trains a decoder of random weights."""

    def __init__(self, config: BaseTrainConfig, maker: SampleMaker, vocab_size: int) -> None:
        decoder = Decoder(config.shape.config(vocab_size))
        initialise(decoder, config.seed)
        self.decoder, self.maker = decoder.to(config.device), maker
        self.model = BaseModel(self.decoder)
        super().__init__(config, self.model)
        if config.compile:
            decoder.compile_layers()
        self.muon, self.adam = decoder_optimizers(decoder, config.weight_decay, config.dtype)

    def batch(self, number: int) -> Batch:
        config = self.config
        stage = stage_of(config.stages, number, config.steps)
        return make_batch(self.maker, stage, config.batch_tokens, config.history_weight, config.seed, number)

    def backward(self, batch: Batch) -> None:
        with self.config.autocast():
            losses, right = self.model.token_losses(batch)
        loss = (losses * batch.weights).sum() / batch.weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self.means.add("loss", loss)
        count_batch(self.means, batch, losses, right)
        self.tokens += batch.ids.numel()

    def update(self, rate: float) -> None:
        self.muon.step(rate * self.config.muon_rate)
        self.adam.step(rate * self.config.adam_rate, self.step + 1)

    def tensors(self) -> dict[str, Tensor]:
        weights = {f"model.{name}": p.detach() for name, p in self.decoder.named_parameters()}
        return {**weights, **self.muon.state(), **self.adam.state()}

    def note(self) -> str:
        return f"sequences of {stage_of(self.config.stages, self.step - 1, self.config.steps).length}"


def train_base(config: BaseTrainConfig, report: Report, stop: Event | None = None) -> BaseTrainer:
    """See ``train``; the trainer as the run left it."""
    config.out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(config, report)
    maker = SampleMaker(training_streams(config, tokenizer, report), ChatEncoder(tokenizer), config.mix)
    check_stages(maker, config.stages, config.seed)
    trainer = BaseTrainer(config, maker, tokenizer.get_vocab_size())
    trainer.resume()
    train(trainer, report, stop)
    return trainer


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
