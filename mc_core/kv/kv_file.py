"""The keys and values of one slab as a safetensors file, written layer by layer and read back whole or not at all.

A file says what its numbers depend on, and is of no use where that is otherwise. It has a length that its header tells
before anything is read, and a checksum over all of it: whatever is cut short, damaged or not of this kind is refused.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.errors import MegaContextError
from mc_core.kv.slab import SlabPool

FORMAT = 1
MOST_HEADER = 1 << 20
"""Bytes of a header: far more than the names of 1,000 layers take."""
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
META = "megacontext"
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


def write_kv(path: Path, head: Head, shape: Shape, layers: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write a file, readable by its owner alone. layers: keys and values of each, in order, in host memory."""
    parts = (head.columns, head.blocks, head.opened)
    header = _header(_meta(head), [part.shape for part in parts], shape)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        summed = _Summed(file)
        summed.write(header)
        for part in parts:
            summed.write(np.ascontiguousarray(part).data.cast("B"))
        for both in layers:
            for tensor in both:
                summed.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        file.write(np.array([summed.sum], np.int64).tobytes())


def read_kv(path: Path, of: Mapping[str, Any], shape: Shape, most_units: int) -> KVFile:
    """Read a file that depends on ``of`` and has ``most_units`` units at most. FileNotFoundError if there is none,
    KVFileError if it can't be used."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, found, sizes = _read_header(file, size)
        if found["of"] != dict(of):
            raise ForeignFileError("it is of other weights, settings or versions")
        units = sizes[0][1]
        if units > most_units:
            raise KVFileError(f"it has {units} units, and a slab {most_units}")
        if _header(json.dumps(found), sizes, shape) != header:
            raise KVFileError("its header is not as it was written")
        lengths = [8 * int(np.prod(part)) for part in sizes]
        each = shape.kv_heads * units * shape.head_dim * shape.dtype.itemsize
        data = sum(lengths) + 2 * shape.layers * each
        if size != len(header) + data + 8:
            raise KVFileError(f"it has {size:,} bytes in place of {len(header) + data + 8:,}")
        content = torch.empty(data, dtype=torch.uint8)
        if file.readinto(content.numpy().data) != data:
            raise KVFileError("it ends too soon")
        checksum = int(np.frombuffer(file.read(8), np.int64)[0])
    if zlib.crc32(content.numpy().data, zlib.crc32(header)) != checksum:
        raise KVFileError("its checksum is wrong")
    *heads, rest = torch.split(content, [*lengths, 2 * shape.layers * each])
    arrays = [part.numpy().view(np.int64).reshape(kind) for part, kind in zip(heads, sizes, strict=True)]
    both = rest.view(shape.dtype).view(shape.layers, 2, shape.kv_heads, units, shape.head_dim)
    owner = found["owner"]
    return KVFile(Head(found["of"], (owner[0], owner[1]), *arrays), both[:, 0], both[:, 1])


def owner_of(path: Path) -> tuple[str, str]:
    """Tenant and id of the session that a file is of. KVFileError if it isn't one."""
    with open(path, "rb") as file:
        tenant, session_id = _read_header(file, os.fstat(file.fileno()).st_size)[1]["owner"]
    return str(tenant), str(session_id)


class _Summed:
    """Writes, and sums up what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sum = file, 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.sum = zlib.crc32(data, self.sum)


def _meta(head: Head) -> str:
    return json.dumps({"format": FORMAT, "of": dict(head.of), "owner": list(head.owner)})


def _header(meta: str, sizes: Iterable[tuple[int, ...]], shape: Shape) -> bytes:
    """The first bytes of a file, as the format wants them: the header's length, and the header."""
    heads = list(zip(("columns", "blocks", "opened"), sizes, strict=True))
    units = heads[0][1][-1]
    tensors: list[tuple[str, str, tuple[int, ...], int]] = [(name, "I64", size, 8) for name, size in heads]
    one = (shape.kv_heads, units, shape.head_dim)
    kind, width = DTYPES[shape.dtype], shape.dtype.itemsize
    tensors += [(f"{name}.{i}", kind, one, width) for i in range(shape.layers) for name in ("keys", "values")]
    tensors.append(("checksum", "I64", (1,), 8))
    described: dict[str, Any] = {"__metadata__": {META: meta}}
    end = 0
    for name, kind, size, width in tensors:
        begin, end = end, end + width * int(np.prod(size))
        described[name] = {"dtype": kind, "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_header(file: BinaryIO, size: int) -> tuple[bytes, dict[str, Any], list[tuple[int, ...]]]:
    """The header as it stands, what it says of the file, and the sizes of the head's parts; KVFileError if it says
    nothing of the kind."""
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(MOST_HEADER, size - 8):
        raise KVFileError("it is no file of keys and values")
    text = file.read(length)
    try:
        described = json.loads(text)
        found = json.loads(described["__metadata__"][META])
        sizes = [tuple(map(int, described[name]["shape"])) for name in ("columns", "blocks", "opened")]
        known = found["format"], found["of"], found["owner"]
        fits = known[0] == FORMAT and isinstance(known[1], dict) and len(known[2]) == 2
        fits = fits and [len(part) for part in sizes] == [2, 1, 1] and all(n >= 0 for part in sizes for n in part)
    except (ValueError, KeyError, TypeError) as error:
        raise KVFileError("it is no file of keys and values") from error
    if not fits:
        raise KVFileError("it is of another version, or no file of keys and values")
    return first + text, found, sizes
