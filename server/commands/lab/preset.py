"""Presets of training runs, and matrices of them: YAML files, the project's own or the user's."""

from __future__ import annotations

from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import typer
import yaml

FOLDER = files("server.commands.lab").joinpath("presets")


def names() -> list[str]:
    """The project's own presets."""
    return sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """Settings of a preset, by its name or by a file; typer.BadParameter if there is none, or it is not a mapping."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.exists():
            raise typer.BadParameter(f"--preset: there is no file {path}")
        text = path.read_text(encoding="utf-8")
    elif name in names():
        text = FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise typer.BadParameter(f"--preset: must be one of {', '.join(names())}, or a .yaml file, got {name!r}")
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"--preset: {name} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise typer.BadParameter(f"--preset: {name} must be a mapping of settings")
    return settings


def runs_of(matrix: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The runs of an ablation: ``base`` settings, and ``vary``: values by setting ("gist.head": [linear, mlp]).

    ``each`` (default): one setting is varied at a time from the base; ``all``: every combination. Returns
    (name, settings); the base comes first.
    """
    strange = set(matrix) - {"base", "vary", "how"}
    vary, how = matrix.get("vary") or {}, matrix.get("how", "each")
    if strange or not isinstance(vary, dict) or how not in ("each", "all"):
        raise typer.BadParameter("a matrix has base, vary (lists by setting) and how (each or all), and nothing else")
    base = dict(matrix.get("base") or {})
    found: dict[str, dict[str, Any]] = {} if how == "all" else {"base": base}
    if how == "all":
        for values in product(*vary.values()):
            chosen = dict(zip(vary, values, strict=True))
            found[",".join(f"{key}={value}" for key, value in chosen.items())] = with_values(base, chosen)
    else:
        for key, values in vary.items():
            for value in values:
                found[f"{key}={value}"] = with_values(base, {key: value})
    return list(found.items())


def with_values(settings: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Settings with some of them set; "gist.head" is the field ``head`` of the group ``gist``."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        (result.setdefault(group, {}) if group else result)[name] = value
    return result
