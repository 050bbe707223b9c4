"""The keys and values of one slab as a safetensors file, read back whole or not at all.

A file says what its numbers depend on, and is of no use where that is otherwise. It has a checksum over all that it
says: whatever is cut short, damaged or not of this kind is refused.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mc_core.errors import MegaContextError
from mc_core.kv.slab import SlabPool

FORMAT = 1
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
META, CHECKSUM = "megacontext", "checksum"
Ints = NDArray[np.int64]


class KVFileError(MegaContextError):
    """A file that can't be used; the message says why."""


class ForeignFileError(KVFileError):
    """A file whose numbers depend on something else than those of this server."""


@dataclass(frozen=True)
class Shape:
    """Of the keys, and of the values, of one layer: [kv_heads, units, head_dim]."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, pool: SlabPool) -> Shape:
        config = pool.config
        return cls(config.num_layers, config.num_kv_heads, config.head_dim, pool.dtype)

    @property
    def unit_bytes(self) -> int:
        """Of the keys and values of one unit."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class Head:
    """What a file says beside keys and values.

    of: what its numbers depend on. owner: the tenant and id of its session. columns [c, n]: what the slab knows of its
    n units. blocks [b]: hashes of the complete blocks of the history (``Trail``); opened [o]: the ids behind them.
    """

    of: Mapping[str, Any]
    owner: tuple[str, str]
    columns: Ints
    blocks: Ints
    opened: Ints


@dataclass(frozen=True)
class KVFile:
    """A file that was read: its head, and keys and values [layers, kv_heads, n, head_dim]."""

    head: Head
    keys: Tensor
    values: Tensor


def write_kv(path: Path, head: Head, layers: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write a file, readable by its owner alone. layers: keys and values of each, in order, in host memory."""
    parts = {"columns": head.columns, "blocks": head.blocks, "opened": head.opened}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}
    for layer, (keys, values) in enumerate(layers):
        tensors |= {f"keys.{layer}": keys.contiguous(), f"values.{layer}": values.contiguous()}
    meta = json.dumps({"format": FORMAT, "of": dict(head.of), "owner": list(head.owner)})
    # The writer truncates a file that is there, so it stays as private as it is made here.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    save_file(tensors, path, {META: meta, CHECKSUM: _checksum(meta, tensors)})


def read_kv(path: Path, of: Mapping[str, Any], shape: Shape, most_units: int) -> KVFile:
    """Read a file that depends on ``of`` and has ``most_units`` units at most. FileNotFoundError if there is none,
    KVFileError if it can't be used."""
    with _opened(path) as (file, told):
        found = json.loads(told[META])
        if found["of"] != dict(of):
            raise ForeignFileError("it is of other weights, settings or versions")
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        sizes = {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}
        columns, units = sizes["columns"][1]
        if units > most_units:
            raise KVFileError(f"it has {units} units, and a slab {most_units}")
        wanted = {"columns": ("I64", [columns, units])}
        wanted |= {name: ("I64", [*sizes[name][1][:1]]) for name in ("blocks", "opened")}
        one = DTYPES[shape.dtype], [shape.kv_heads, units, shape.head_dim]
        wanted |= {f"{name}.{layer}": one for layer in range(shape.layers) for name in ("keys", "values")}
        if sizes != wanted:
            raise KVFileError("it has not the tensors that a slab has")
        tensors = {name: file.get_tensor(name) for name in wanted}
        if _checksum(told[META], tensors) != told[CHECKSUM]:
            raise KVFileError("its checksum is wrong")
    arrays = (tensors[name].numpy() for name in ("columns", "blocks", "opened"))
    both = (torch.stack([tensors[f"{name}.{i}"] for i in range(shape.layers)]) for name in ("keys", "values"))
    return KVFile(Head(found["of"], _owner(found), *arrays), *both)


def owner_of(path: Path) -> tuple[str, str]:
    """Tenant and id of the session that a file is of. KVFileError if it isn't one."""
    with _opened(path) as (_, told):
        return _owner(json.loads(told[META]))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A file, and what it says of itself; whatever is wrong with either is a KVFileError."""
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            if json.loads(told[META])["format"] != FORMAT:
                raise KVFileError("it is of another version")
            yield file, told
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise KVFileError(f"it is no file of keys and values: {error}") from error


def _owner(found: Mapping[str, Any]) -> tuple[str, str]:
    tenant, session_id = found["owner"]
    return str(tenant), str(session_id)


def _checksum(meta: str, tensors: Mapping[str, Tensor]) -> str:
    checksum = zlib.crc32(meta.encode())
    for name in sorted(tensors):
        # Bytes of any dtype; without elements there is nothing to view.
        content = tensors[name].reshape(-1)
        checksum = zlib.crc32(content.view(torch.uint8).numpy().data if len(content) else b"", checksum)
    return str(checksum)
