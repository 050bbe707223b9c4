"""Base models on disk: Hugging Face folders in and out, GGUF files in. No pickle is ever opened."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mc_core.errors import ConfigError
from mc_core.models import float8
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.families import read_config, write_config
from mc_core.models.gguf_file import GgufFile, part_number
from mc_core.models.linear import check_weights, compute_dtype
from mc_core.models.quantising import Quantiser

logger = logging.getLogger(__name__)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ConfigError if it is missing or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.name} is missing in {path.parent}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file whole or not at all."""
    part = path.with_name(path.name + ".part")
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, {"format": "pt"})
    os.replace(part, path)


class WeightSource(Protocol):
    """Where a base model comes from: its shape, and its weights by their Hugging Face names."""

    path: Path

    def config(self) -> DecoderConfig:
        """The decoder's shape; ConfigError names what is missing or unsupported."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight, one in memory at a time."""
        ...


class HuggingFaceFolder:
    """``config.json`` and ``*.safetensors``, of which FP8 weights are dequantised."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def config(self) -> DecoderConfig:
        return read_config(read_json(self.path / "config.json"))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        block = float8.block_of(read_json(self.path / "config.json").get("quantization_config") or {})
        files = _weight_files(self.path)
        # First, for a scale may stand in another file than its weight.
        scales = dict(_tensors(files, float8.is_beside))
        for name, tensor in _tensors(files, lambda name: not float8.is_beside(name)):
            yield name, float8.dequantised(name, tensor, scales, block)


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that a model's path means: the file itself, or the only model in a folder without config.json.

    ConfigError if a folder holds several models.
    """
    if path.suffix == ".gguf":
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    models = [file for file in sorted(path.glob("*.gguf")) if part_number(file) == 1]
    if len(models) > 1:
        raise ConfigError(f"{path} holds {len(models)} GGUF models; name one of {', '.join(m.name for m in models)}")
    return models[0] if models else None


class _Unset(TorchFunctionMode):
    """Leaves new parameters as they are: drawing them without a device imports a second's worth of torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def load_decoder(path: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
    """The base model of a Hugging Face folder (``config.json``, ``*.safetensors``) or a GGUF file, in eval mode.

    dtype: of the weights; ``torch.int8`` is for serving on the CPU alone (``models/linear.py``).
    ConfigError names the setting that is unsupported, or the tensors that are missing, unexpected or mis-shaped.
    """
    file = find_gguf(Path(path))
    return decoder_of(HuggingFaceFolder(path) if file is None else GgufFile(file), dtype, device)


def decoder_of(source: WeightSource, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
    """The base model of a weight source; errors as ``load_decoder``."""
    check_weights(dtype, device)
    config = source.config()
    with torch.device("meta"), _Unset():
        decoder = Decoder(config)
    quantiser = Quantiser(decoder) if dtype == torch.int8 else None
    dtype = compute_dtype(dtype)
    expected = {_disk_name(name): tuple(p.shape) for name, p in decoder.state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    weights: dict[str, Tensor] = {}
    found: set[str] = set()
    tied_head: Tensor | None = None
    wrong: list[str] = []
    for name, tensor in source.tensors():
        if name.endswith("rotary_emb.inv_freq"):
            continue  # old checkpoints carry it; it is a function of the config
        if name == "lm_head.weight" and config.tie_word_embeddings:
            tied_head = tensor
        elif name not in expected:
            wrong.append(f"{name} is unexpected")
        elif tuple(tensor.shape) != expected[name]:
            wrong.append(f"{name} has shape {tuple(tensor.shape)}, the configuration says {expected[name]}")
        else:
            # A copy: the file stays mapped otherwise, and a later overwrite of it would reach into the model.
            weights[_own_name(name)] = tensor.to(device=device, dtype=dtype, copy=True)
            found.add(name)
            if quantiser is not None:
                quantiser.take(_own_name(name), weights)
    wrong += [f"{name} is missing" for name in expected if name not in found and not _named(wrong, name)]
    if wrong:
        raise ConfigError(f"the weights in {source.path} do not fit the configuration: {_summary(wrong)}")
    _check_tied(tied_head, weights)
    decoder.load_state_dict(weights, strict=False, assign=True)
    if config.tie_word_embeddings:
        decoder.lm_head.weight = decoder.embed_tokens.weight
    if quantiser is not None:
        quantiser.finish()
    return decoder.eval()


def save_decoder(
    path: Path | str, decoder: Decoder, dtype: torch.dtype | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Write ``config.json`` and ``model.safetensors``, a folder that transformers loads as well.

    dtype: of the weights on disk, None keeps the decoder's. extra: further keys for config.json, such as
    ``eos_token_id``. ConfigError if the family's config.json cannot express the decoder's shape.
    """
    folder, dtype = Path(path), dtype or decoder.dtype
    config = write_config(decoder.config) | {"torch_dtype": str(dtype).removeprefix("torch."), **(extra or {})}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {_disk_name(name): tensor.to(dtype) for name, tensor in decoder.state_dict().items()}
    if decoder.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    save_tensors(folder / WEIGHTS, weights)
    write_json(folder / "config.json", config)


def _disk_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


def _own_name(name: str) -> str:
    return name.removeprefix("model.")


def _tensors(files: Iterable[Path], wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of weight files whose names are wanted, one in memory at a time."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for name in filter(wanted, weights.keys()):
                    yield name, weights.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{file} cannot be read as safetensors: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    """A whole file counts before an index of shards, as it does in transformers."""
    if (folder / WEIGHTS).exists():
        if (folder / INDEX).exists():
            logger.warning("%s: %s is read, %s beside it is not", folder, WEIGHTS, INDEX)
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise ConfigError(f"{INDEX} may name files of its own folder only, got {outside}")
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise ConfigError(f"{INDEX} names {_summary(missing)}, missing in {folder}, and there is no {WEIGHTS}")
        return [folder / name for name in names]
    raise ConfigError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; other weight formats are not read")


def _check_tied(head: Tensor | None, weights: Mapping[str, Tensor]) -> None:
    if head is None:
        return
    embedding = weights["embed_tokens.weight"]
    if head.shape != embedding.shape or not torch.equal(head.to(embedding), embedding):
        raise ConfigError("tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight")


def _named(wrong: list[str], name: str) -> bool:
    return any(line.startswith(f"{name} ") for line in wrong)


def _summary(lines: list[str], most: int = 8) -> str:
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more
