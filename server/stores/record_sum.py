"""A checksum of the whole of a record, kept in its state: rows and notes have their own."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

from mc_core.store import DamagedRecordError, SessionInfo, SessionRecord

KEY = "record_crc32"
"""In the stored state; no state of a session itself has this name, nor one that differs from it in a letter."""
_SEAL = re.compile(rf'(?:, )?"(.{{{len(KEY)}}})": (\d+)}}\Z')


def record_sum(info: SessionInfo, tail: bytes, prefixes: Sequence[tuple[str, int]], metadata: str, state: str) -> int:
    """CRC-32 of what a commit replaces and of what stays for good; not of what the store itself counts (sequence,
    times, leases), nor of the shape of gists. tail: int32, little-endian. metadata, state: their JSON."""
    told = [
        info.session_id,
        info.tenant,
        info.model,
        info.tokenizer,
        info.block_size,
        info.tokens,
        info.implicit,
        metadata,
        state,
        sorted({(position, key) for key, position in prefixes}),
        tail.hex(),
    ]
    if info.keep or info.ttl is not None:  # records from before there were these have the sum that they had
        told += [info.keep, info.ttl]
    return zlib.crc32(json.dumps(told).encode())


def sealed(record: SessionRecord, metadata: str, state: str) -> str:
    """The state as it is stored: one more name at its end."""
    checksum = record_sum(record, record.tail.astype("<i4").tobytes(), record.prefixes, metadata, state)
    return f'{state[:-1]}{", " if len(state) > 2 else ""}"{KEY}": {checksum}}}'


def unsealed(
    info: SessionInfo, tail: bytes, prefixes: Sequence[tuple[str, int]], metadata: str, stored: str
) -> dict[str, Any]:
    """The state of a record whose parts are these, as they were read. DamagedRecordError if that is not what was
    written; a record from before there were checksums passes."""
    state, seal = stored, _SEAL.search(stored)
    # A flipped bit in the name must not make a record one that never had a checksum.
    if seal is not None and sum(a != b for a, b in zip(seal[1], KEY, strict=True)) < 2:
        state = f"{stored[: seal.start()]}}}"
        if seal[1] != KEY or record_sum(info, tail, prefixes, metadata, state) != int(seal[2]):
            raise DamagedRecordError(f"the record of session {info.session_id!r} is not as it was written")
    told: dict[str, Any] = json.loads(state)
    return told
