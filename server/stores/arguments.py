"""Arguments made ready for a store in the caller's thread: checked, copied, their JSON written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import ConfigError, MegaContextError
from mc_core.store import MAX_LIST, Floats, SessionInfo, SessionRecord
from server.stores.record_sum import sealed

MAX_RANGE = 1 << 26
INFO_FIELDS = tuple(field.name for field in fields(SessionInfo))
COUNTED_FIELDS = ("sequence", "updated", "gist_blocks")
"""What the store itself counts, whatever a record says."""
SHAPE_FIELDS = ("gist_dim", "gist_dtype", "gist_keys", "key_dim")
FIXED_FIELDS = ("tenant", "model", "tokenizer", "block_size", *SHAPE_FIELDS)
Payload = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class EncodedRecord:
    """A record made ready for a store outside any transaction: its JSON is text already, its state has a checksum."""

    record: SessionRecord
    metadata: str
    state: str

    @classmethod
    def of(cls, record: SessionRecord) -> EncodedRecord:
        """Raises ConfigError if state or metadata are not JSON-able."""
        texts = []
        for name in ("metadata", "state"):
            try:
                texts.append(json.dumps(getattr(record, name), allow_nan=False))
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{name} must be JSON-able: {error}") from error
        metadata, state = texts
        return cls(record, metadata, sealed(record, metadata, state))

    @classmethod
    def of_new(cls, record: SessionRecord) -> EncodedRecord:
        """The same for a session to create: it must be empty."""
        if record.tokens:
            raise ConfigError(f"a new session must be empty, got tokens = {record.tokens}")
        return cls.of(record)


@dataclass(frozen=True)
class Staging:
    """Rows first, first + 1, ... of ``level``, to be staged under a lease; ``payload``: field name -> [n, ...]."""

    session_id: str
    fence: int
    level: int
    first: int
    payload: Payload

    @classmethod
    def spans(cls, session_id: str, fence: int, first: int, ids: NDArray[Any]) -> Staging:
        """A private copy of ids [n, K]. Raises ConfigError if a number doesn't fit int32."""
        return cls(session_id, fence, 0, first, {"ids": _int32(ids)})

    @classmethod
    def gists(cls, session_id: str, fence: int, level: int, first: int, gists: Floats, keys: Floats | None) -> Staging:
        """Private copies of gists [n, d] and lens keys."""
        if level < 1:
            raise ConfigError(f"level of a gist must be at least 1, got {level}")
        payload = {"gist": np.array(gists)} | ({} if keys is None else {"keys": np.array(keys)})
        return cls(session_id, fence, level, first, payload)

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(values.nbytes for values in self.payload.values())


def row_range(first: int, count: int) -> range:
    """The indices [first, first + count). Raises ConfigError for a range that can't be."""
    if first < 0 or not 0 <= count <= MAX_RANGE:
        raise ConfigError(f"a range must start at 0 or later and hold 0 to {MAX_RANGE} rows, got {first}, {count}")
    return range(first, first + count)


def check_limit(limit: int) -> None:
    """ConfigError for a number of sessions that no call takes."""
    if not 1 <= limit <= MAX_LIST:
        raise ConfigError(f"limit must lie in [1, {MAX_LIST}], got {limit}")


def refused(error: MegaContextError) -> Future[Any]:
    """A future that has failed already."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _int32(ids: NDArray[Any]) -> NDArray[np.int32]:
    ids = np.asarray(ids)
    copy = ids.astype(np.int32)
    if ids.dtype.kind not in "iu" or (ids.dtype != np.int32 and not np.array_equal(copy, ids)):
        raise ConfigError(f"ids must be int32 token ids, got {ids.dtype}")
    return copy
