"""How the makers of a model want its tokens drawn: ``generation_config.json`` of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mc_core.errors import ConfigError
from mc_core.models.loading import read_json
from mc_core.models.sampling_params import SamplingParams

FILE = "generation_config.json"
FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(folder: Path) -> SamplingParams:
    """What the file says of sampling, the rest as ever; ``do_sample`` false is temperature 0.

    ConfigError names the file and the field whose value cannot be used.
    """
    file = folder / FILE
    settings = read_json(file) if file.exists() else {}
    given = {name: _number(name, settings[name]) for name in FIELDS if settings.get(name) is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    sample = settings.get("do_sample")
    if not isinstance(sample, bool | None):
        raise ConfigError(f"do_sample in {FILE} must be true or false, got {sample!r}")
    if sample is False:
        given["temperature"] = 0.0
    try:
        return SamplingParams(**given)
    except ConfigError as error:
        raise ConfigError(f"{FILE}: {error}") from error


def _number(name: str, value: Any) -> Any:
    kind: Any = int if name == "top_k" else int | float
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ConfigError(f"{name} in {FILE} must be {'an integer' if kind is int else 'a number'}, got {value!r}")
    return value
