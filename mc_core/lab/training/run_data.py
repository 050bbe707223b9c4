"""What a run reads: the tokenizer of the model that it trains for, and its corpus in that tokenizer's tokens."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from mc_core.errors import ConfigError
from mc_core.lab.data.cache import Stream, open_cache, prepare_cache
from mc_core.lab.training.progress import Report, TrainProgress
from mc_core.lab.training.run_config import RunConfig
from mc_core.models.gguf_file import GgufFile
from mc_core.models.gguf_tokenizer import tokenizer_json
from mc_core.models.loading import find_gguf


def model_tokenizer(model: Path) -> Tokenizer:
    """Of a folder or a GGUF file; ConfigError if the folder has none."""
    if (file := find_gguf(model)) is not None:
        return Tokenizer.from_buffer(tokenizer_json(GgufFile(file)))
    path = model / "tokenizer.json"
    if not path.exists():
        raise ConfigError(f"model: {model} has no tokenizer.json")
    return Tokenizer.from_file(str(path))


def training_streams(config: RunConfig, tokenizer: Tokenizer, report: Report) -> list[Stream]:
    """The corpus without what is held out; tokenised into the run's ``cache`` folder the first time."""
    cache = config.out / "cache"
    prepare_cache(config.data, tokenizer, cache, lambda name, n: report(TrainProgress("cache", n, 0, name)))
    return open_cache(cache, "train")
