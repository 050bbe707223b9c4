"""Checkpoints of a training run: folders of safetensors and JSON that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.models.loading import read_json, save_tensors, write_json

PREFIX, KEEP = "step-", 2


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write ``folder/step-<step>`` and drop all but the newest ``KEEP`` checkpoints."""
    target = folder / f"{PREFIX}{step:08d}"
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_tensors(part / "tensors.safetensors", tensors)
    write_json(part / "state.json", {**state, "step": step})
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").exists())


def load_checkpoint(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Copy a checkpoint into ``tensors`` and return its state.

    ConfigError names tensors that are missing or have another shape.
    """
    try:
        saved = load_file(path / "tensors.safetensors")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    wrong = [name for name, t in tensors.items() if name not in saved or saved[name].shape != t.shape]
    if wrong or len(saved) != len(tensors):
        raise ConfigError(f"{path} does not fit this run's model: {sorted(wrong)[:5] or 'it has more tensors'}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
    return read_json(path / "state.json")
