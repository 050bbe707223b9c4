"""What a Hugging Face folder says of its tokenizer, beside tokenizer.json itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mc_core.errors import ConfigError
from mc_core.models.loading import read_json


@dataclass(frozen=True)
class TokenizerFiles:
    """spec: contents of tokenizer.json; settings: of tokenizer_config.json; template: the raw chat template or ""."""

    spec: bytes
    settings: Mapping[str, Any]
    eos_ids: tuple[int, ...]
    template: str

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """ConfigError if tokenizer.json is missing or a companion cannot be read."""
        try:
            spec = (folder / "tokenizer.json").read_bytes()
        except FileNotFoundError:
            raise ConfigError(f"tokenizer.json is missing in {folder}") from None
        settings = _optional(folder / "tokenizer_config.json")
        eos_ids = {
            token
            for name in ("generation_config.json", "config.json")
            for token in _id_list(_optional(folder / name).get("eos_token_id"), name)
        }
        return cls(spec, settings, tuple(sorted(eos_ids)), _template(folder, settings))


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and their like, as templates name them."""
    named = {k: v for k, v in settings.items() if re.fullmatch(r"(bos|eos|pad|unk|sep|cls|mask)_token", k)}
    texts = {name: value.get("content") if isinstance(value, Mapping) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _template(folder: Path, settings: Mapping[str, Any]) -> str:
    """Of chat_template.jinja, else tokenizer_config.json, else chat_template.json (a processor's); "" without any."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    for holder in (settings, _optional(folder / "chat_template.json")):
        if template := _default(holder.get("chat_template")):
            return template
    return ""


def _default(template: Any) -> str:
    """The template itself, or of several named ones the one called default."""
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template}
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else ""


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _id_list(value: Any, name: str) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise ConfigError(f"eos_token_id in {name} must be a token id or a list of them, got {value!r}")
    return ids
