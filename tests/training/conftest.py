"""A corpus, a tokenizer trained on it and a tiny base, shared by the training tests."""

from pathlib import Path

import pytest
import torch

from mc_core.lab.data.cache import open_cache, prepare_cache
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.data.train_tokenizer import train_tokenizer
from mc_core.lab.training.base.model import initialise
from mc_core.models.decoder import Decoder
from mc_core.models.loading import save_decoder
from training_lab import TINY, Corpus, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("training")
    write_corpus(root / "data")
    tokenizer = train_tokenizer(root / "data", root / "tokenizer", vocab_size=512)
    prepare_cache(root / "data", tokenizer, root / "cache")
    train, held_out = (open_cache(root / "cache", split) for split in ("train", "held_out"))
    return Corpus(root / "data", root / "tokenizer", tokenizer, ChatEncoder(tokenizer), train, held_out)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """A tiny base of random weights with the training corpus' tokenizer."""
    folder = tmp_path_factory.mktemp("base") / "tiny-base"
    decoder = Decoder(TINY.config(corpus.tokenizer.get_vocab_size()))
    initialise(decoder, 0)
    save_decoder(folder, decoder)
    for file in corpus.tokenizer_dir.iterdir():
        if file.name.startswith("tokenizer"):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder
