"""A checksum of the whole of a record, kept in its state: rows and notes have their own."""

from __future__ import annotations

import json
import zlib
from typing import Any

from mc_core.store import SessionRecord

KEY = "record_crc32"
"""In the stored state; no state of a session itself has this name."""


def record_sum(record: SessionRecord, metadata: str, state: str) -> int:
    """CRC-32 of what a commit replaces and of what stays for good; not of what the store itself counts (sequence,
    times, leases), nor of the shape of gists. metadata, state: their JSON."""
    told = [
        record.session_id,
        record.tenant,
        record.model,
        record.tokenizer,
        record.block_size,
        record.tokens,
        record.implicit,
        metadata,
        state,
        sorted({(position, key) for key, position in record.prefixes}),
        record.tail.astype("<i4").tobytes().hex(),
    ]
    return zlib.crc32(json.dumps(told).encode())


def sealed(state: str, checksum: int) -> str:
    """The state as it is stored: one more name at its end."""
    return f'{state[:-1]}{", " if len(state) > 2 else ""}"{KEY}": {checksum}}}'


def unsealed(stored: str | bytes) -> tuple[dict[str, Any], int | None]:
    """The state, and the checksum that it was stored with; None in a record from before there were any."""
    state: dict[str, Any] = json.loads(stored)
    return state, state.pop(KEY, None)


def is_sound(record: SessionRecord) -> bool | None:
    """Whether a record, as a store gave it, is as it was written; None if that can't be told."""
    if record.checksum is None:
        return None
    return record.checksum == record_sum(record, json.dumps(dict(record.metadata)), json.dumps(dict(record.state)))
