"""The tokenizer of a model on disk, a folder or a GGUF file, without its weights."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as RawTokenizer

from mc_core.errors import ConfigError
from mc_core.models.gguf_file import GgufFile
from mc_core.models.gguf_tokenizer import load_tokenizer, tokenizer_json
from mc_core.models.loading import find_gguf
from mc_core.models.tokenizer import Tokenizer


def model_tokenizer(path: Path) -> Tokenizer:
    """As the server uses it; ConfigError if there is none."""
    file = find_gguf(path)
    return Tokenizer.load(path) if file is None else load_tokenizer(GgufFile(file))


def raw_tokenizer(path: Path) -> RawTokenizer:
    """The library's own object, for text in training's format; ConfigError if there is none."""
    file = find_gguf(path)
    if file is not None:
        return RawTokenizer.from_buffer(tokenizer_json(GgufFile(file)))
    spec = path / "tokenizer.json"
    if not spec.exists():
        raise ConfigError(f"tokenizer.json is missing in {path}")
    return RawTokenizer.from_file(str(spec))
