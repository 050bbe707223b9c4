"""Training of word vectors: fitted to a teacher's, resumed to the same weights, and shipped without a base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch

from gguf_writer import write_gguf
from mc_core.errors import ConfigError
from mc_core.lab.data.train_tokenizer import write_tokenizer
from mc_core.lab.training.base.model import initialise
from mc_core.lab.training.lens import teacher, words
from mc_core.lab.training.lens.export import export_lens
from mc_core.lab.training.lens.lens_training import LensShape, LensTrainConfig
from mc_core.lab.training.lens.trainer import open_run, train_lens
from mc_core.lab.training.lens.words import fit_words, word_targets
from mc_core.models import sentence_encoder
from mc_core.models.decoder import Decoder
from mc_core.models.loading import save_decoder
from mc_core.nets.lens_words import WordNet
from training_lab import TINY, Corpus

STEPS, SIZE = 4, 12
NET = LensShape(width=16, heads=2, layers=1, keys=2, key_dim=16, key_width=24, words=8, word_hidden=24)


def ignore(progress: object) -> None:
    """No report."""


def encode(texts: list[str]) -> torch.Tensor:
    """A teacher that knows letters alone."""
    vectors = torch.tensor([[float(text.count(letter)) for letter in "abcdefghilmn"] for text in texts]) + 0.01
    return torch.nn.functional.normalize(vectors, dim=-1).half()


@pytest.fixture(autouse=True)
def _taught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "load_teacher", lambda: encode)


@pytest.fixture(scope="module")
def config(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> LensTrainConfig:
    """A run of seconds for a tiny base."""
    root = tmp_path_factory.mktemp("words")
    decoder = Decoder(TINY.config(corpus.tokenizer.get_vocab_size()))
    initialise(decoder, 0)
    (root / "model").mkdir()
    write_tokenizer(root / "model", corpus.tokenizer, TINY.max_positions)
    save_decoder(root / "model", decoder, torch.float32, {})
    small = {
        "pairs": 4,
        "fresh": 16,
        "concepts": 8,
        "validation_blocks": 96,
        "labels": 0,
        "fit_steps": 5,
        "bank": 64,
        "hard": 8,
    }
    times = {"steps": STEPS, "log_steps": 1, "validation_steps": 3, "glances": 1, "histories": 1, "warmup_steps": 1}
    tasks = ("needle", "paraphrase")
    return LensTrainConfig(  # type: ignore[arg-type]
        data=corpus.data, model=root / "model", out=root / "run", net=NET, tasks=tasks, **small, **times
    )


def test_a_resumed_run_of_word_vectors_is_the_same_run(config: LensTrainConfig, tmp_path: Path) -> None:
    """N steps give the same weights as N/2 steps, a stop, and N/2 more; the vocabulary is fitted once."""
    whole, split = replace(config, out=tmp_path / "whole"), replace(config, out=tmp_path / "split")
    one = train_lens(whole, ignore, Event())
    stop = Event()
    train_lens(split, lambda p: stop.set() if p.phase == "train" and p.done == STEPS // 2 else None, stop)
    fitted = (split.out / "words.safetensors").stat().st_mtime_ns
    other = train_lens(split, ignore, Event())
    assert (split.out / "words.safetensors").stat().st_mtime_ns == fitted
    assert other.finished
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


def test_a_step_leaves_the_vocabulary(config: LensTrainConfig, tmp_path: Path) -> None:
    """Word vectors stay as they were fitted while lens keys learn."""
    trainer = open_run(replace(config, out=tmp_path / "run"), ignore)
    before = {name: p.detach().clone() for name, p in trainer.net.named_parameters()}
    trainer.learn([trainer.batch(trainer.step)])
    for name, parameter in trainer.net.named_parameters():
        if name.startswith(("word_net", "key_net")):
            assert torch.equal(parameter, before[name]) == name.startswith("word_net"), name
    with pytest.raises(ConfigError, match=r"net\.keys"):
        replace(config, net=replace(NET, keys=0))


def test_networks_for_a_file_are_shipped_without_it(config: LensTrainConfig, corpus: Corpus, tmp_path: Path) -> None:
    """Of a base that is a GGUF file the bundle holds its name and digest alone."""
    decoder = Decoder(TINY.config(corpus.tokenizer.get_vocab_size()))
    initialise(decoder, 0)
    trainer = open_run(replace(config, out=tmp_path / "run"), ignore)
    file = write_gguf(tmp_path / "base.gguf", decoder, "qwen3", tokenizer=None)
    export_lens(replace(config, model=file), trainer.net, tmp_path / "nets", {"steps": 1})
    assert sorted(path.name for path in (tmp_path / "nets").iterdir()) == ["bundle.json", "lensnet.safetensors"]


def test_rarer_words_have_more_weight_and_spellings_share_it() -> None:
    """A word is as rare as all its spellings together; what is no word has no rarity."""
    fold = torch.tensor([0, 0, 2, 3, -1])
    counts = torch.tensor([50, 50, 10, 1, 900])
    targets = word_targets(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), counts, fold, 4)
    rarity = targets.rarity
    assert rarity[0] == rarity[1] < rarity[2] < rarity[3]
    assert rarity[4] == 0
    assert targets.vectors.shape == (5, 4)


def test_fitting_comes_near_the_teacher() -> None:
    """Word vectors come nearer to the teacher's with more steps."""
    draw = torch.Generator().manual_seed(0)
    embeddings, vectors = torch.randn(64, 16, generator=draw), torch.randn(64, 12, generator=draw)
    targets = word_targets(vectors, torch.ones(64, dtype=torch.int64), torch.arange(64), 8)
    torch.manual_seed(0)
    net = WordNet(16, 64, 8)
    little, much = (fit_words(net, embeddings, targets, steps, torch.Generator().manual_seed(0)) for steps in (5, 120))
    assert much > little + 0.3


def test_the_teacher_reads_each_word_alone(corpus: Corpus) -> None:
    """A token's vector is that of its own text in lower case, and spellings of one word have one vector."""
    vectors = teacher.word_vectors(encode, corpus.tokenizer)
    assert len(vectors) == corpus.tokenizer.get_vocab_size()
    for token in range(0, len(vectors), 7):
        text = corpus.tokenizer.decode([token]).strip().lower() or "x"
        torch.testing.assert_close(vectors[token], encode([text])[0])


def test_without_its_package_the_teacher_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra to install."""
    monkeypatch.undo()
    monkeypatch.setattr(sentence_encoder, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="megacontext\\[encoder\\]"):
        teacher.load_teacher()
