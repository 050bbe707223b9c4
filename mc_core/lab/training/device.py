"""Moves what a step learns from to where it is learned from."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def on_device(batch: T, device: torch.device | str) -> T:
    """The batch with all its tensors on ``device``: those of dataclasses, tuples and dicts inside it too."""
    moved: Any = batch
    if isinstance(batch, Tensor):
        moved = batch.to(device)
    elif isinstance(batch, dict):
        moved = {key: on_device(value, device) for key, value in batch.items()}
    elif isinstance(batch, tuple):
        moved = tuple(on_device(value, device) for value in batch)
    elif is_dataclass(batch) and not isinstance(batch, type):
        moved = replace(batch, **{field.name: on_device(getattr(batch, field.name), device) for field in fields(batch)})
    result: T = moved
    return result
