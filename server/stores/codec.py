"""Rows as bytes: spans and gists, each with its own header and checksum, encoded and checked in batches.

The same bytes go into every store. All numbers are little-endian. A row ends in the CRC-32 (zlib) of everything before
it; a row counts as sound only if length, checksum, version, tokenizer and its own address (token range, or level and
index) are all as expected, so a row that strayed to another place is as corrupt as one with a flipped bit.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.store import MAX_LEVEL, SessionInfo

ROW_VERSION = 1
CRC_RESIDUE = 0x2144DF1C  # CRC-32 of any bytes that end in their own CRC-32
Rows = NDArray[np.void]


def short_fingerprint(tokenizer: str) -> int:
    """64 bits that stand for a tokenizer's fingerprint (any string) inside a row."""
    return int.from_bytes(hashlib.blake2b(tokenizer.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class RowFormat:
    """The rows of one level of one session: header, payload fields, checksum.

    ``length`` is what one row covers: K tokens for a span, 1 node for a gist. ``start`` of row i is i * length.
    """

    level: int
    length: int
    fingerprint: int
    dtype: np.dtype[np.void]

    @classmethod
    def of(cls, info: SessionInfo, level: int) -> RowFormat:
        """The format of ``info``'s rows at ``level``. Raises ConfigError for a level that it can't have."""
        if not 0 <= level <= MAX_LEVEL:
            raise ConfigError(f"level must lie in [0, {MAX_LEVEL}], got {level}")
        if level and not info.gist_dim:
            raise ConfigError(f"session {info.session_id!r} keeps no gists (gist_dim is 0)")
        number = np.dtype(info.gist_dtype).newbyteorder("<")
        payload: list[Any] = [("ids", "<i4", (info.block_size,))]
        if level:
            payload = [("gist", number, (info.gist_dim,))]
        if level == 1 and info.gist_keys:
            payload.append(("keys", number, (info.gist_keys, info.key_dim)))
        header: list[Any] = [("version", "u1"), ("level", "u1"), ("length", "<u2"), ("tokenizer", "<u8")]
        dtype = np.dtype([*header, ("start", "<i8"), *payload, ("checksum", "<u4")])
        return cls(level, info.block_size if level == 0 else 1, short_fingerprint(info.tokenizer), dtype)

    @property
    def payload(self) -> tuple[str, ...]:
        """Names of the payload fields."""
        return (self.dtype.names or ())[5:-1]

    def encode(self, first: int, payload: Mapping[str, NDArray[Any]]) -> list[bytes]:
        """Rows first, first + 1, ... as bytes; ``payload``: field name -> [n, ...]. ConfigError names a bad shape."""
        count = len(next(iter(payload.values())))
        rows = np.zeros(count, self.dtype)
        rows["version"], rows["level"], rows["length"] = ROW_VERSION, self.level, self.length
        rows["tokenizer"], rows["start"] = self.fingerprint, self._starts(first + np.arange(count, dtype=np.int64))
        for name, values in payload.items():
            rows[name] = self._checked(name, values, count)
        rows["checksum"] = _checksums(rows)
        encoded: list[bytes] = rows.view(f"V{self.dtype.itemsize}").tolist()
        return encoded

    def decode(self, indices: NDArray[np.int64], rows: Sequence[bytes]) -> tuple[Rows, NDArray[np.bool_]]:
        """``rows[j]`` claims to be row ``indices[j]``: the structured array [n] and which of them are sound [n].

        An unsound row's fields are garbage (zeros if its length was wrong).
        """
        width = self.dtype.itemsize
        whole = np.fromiter(map(len, rows), np.int64, count=len(rows)) == width
        if not whole.all():
            rows = [row if ok else bytes(width) for row, ok in zip(rows, whole.tolist(), strict=True)]
        # numpy's large arrays are of large pages where there are any: half the time of joining the rows to one text.
        table = np.array(rows, f"V{width}").view(self.dtype)
        sound = whole & (np.fromiter(map(zlib.crc32, rows), np.uint32, count=len(rows)) == CRC_RESIDUE)
        sound &= (table["version"] == ROW_VERSION) & (table["level"] == self.level) & (table["length"] == self.length)
        sound &= (table["tokenizer"] == self.fingerprint) & (table["start"] == self._starts(indices))
        return table, sound

    def _starts(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return indices * self.length

    def _checked(self, name: str, values: NDArray[Any], count: int) -> NDArray[Any]:
        base, shape = self.dtype[name].base, (count, *self.dtype[name].shape)
        if values.shape != shape:
            raise ConfigError(f"{name} at level {self.level} must have shape {shape}, got {values.shape}")
        if base.kind == "f":
            with np.errstate(over="ignore"):
                values = values.astype(base)
            if not np.isfinite(values).all():
                raise ConfigError(f"{name} at level {self.level} must be finite in {base.name}")
        return values


def _checksums(rows: Rows) -> NDArray[np.uint32]:
    """CRC-32 of each row without its last four bytes."""
    width, flat = rows.dtype.itemsize, memoryview(rows.tobytes())
    bodies = (flat[start : start + width - 4] for start in range(0, len(flat), width))
    return np.fromiter(map(zlib.crc32, bodies), np.uint32, count=len(rows))
