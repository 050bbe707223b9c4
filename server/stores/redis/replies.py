"""Replies of the script as values, records and errors; records as fields of a hash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from redis.exceptions import OutOfMemoryError

from mc_core.errors import ConfigError, StoreError
from mc_core.store import (
    MAX_LEVEL,
    DamagedRecordError,
    FencedError,
    LeaseHeldError,
    NoteTakenError,
    SessionInfo,
    SessionRecord,
    StoreFullError,
    TurnsLostError,
    UnknownSessionError,
)
from server.stores.arguments import COUNTED_FIELDS, INFO_FIELDS, SHAPE_FIELDS, EncodedRecord
from server.stores.codec import RowFormat
from server.stores.record_sum import unsealed
from server.stores.redis.link import Reply

NUMBERS = {"block_size": int, "gist_dim": int, "gist_keys": int, "key_dim": int, "tokens": int, "sequence": int}
TIMES = ("created", "updated")
FLAGS = ("implicit", "keep")


def value_of(reply: Any, session_id: str) -> Reply:
    """What follows "ok" in a reply; anything else is raised as what it means."""
    if isinstance(reply, OutOfMemoryError):
        raise StoreFullError("Redis is full (maxmemory)")
    if not isinstance(reply, list):
        raise StoreError(f"Redis refused: {reply}")
    kind, text = reply[0], bytes(reply[1]).decode() if reply[0] != b"ok" and len(reply) > 1 else ""
    match kind:
        case b"ok":
            return reply[1:]
        case b"unknown":
            raise UnknownSessionError(text)
        case b"fenced":
            raise FencedError(text)
        case b"damaged":
            raise DamagedRecordError(text)
        case b"lost":
            raise TurnsLostError(text)
        case b"held":
            raise LeaseHeldError(session_id, float(text))
        case b"taken":
            raise NoteTakenError(text)
        case b"config":
            raise ConfigError(text)
        case _:
            raise StoreError(text)


def key_part(text: str) -> str:
    """Text as one part of a key: without ":"."""
    return quote(text, safe="")


def info_of(values: Sequence[bytes]) -> SessionInfo:
    """SessionInfo from the values of INFO_FIELDS."""
    return SessionInfo(**_info(dict(zip(INFO_FIELDS, values, strict=True))))


def record_of(flat: Sequence[bytes], fence: int = 0) -> SessionRecord:
    """The whole record from a session's hash. DamagedRecordError if it is not as it was written."""
    values = {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}
    pairs = sorted(json.loads(values["prefixes"]), key=lambda pair: pair[1])
    prefixes = [(str(key), int(position)) for key, position in pairs]
    info = _info({name: values.get(name) for name in INFO_FIELDS})
    strange = any(values.get(name, b"0") not in (b"0", b"1") for name in FLAGS)
    # "5. " is a number to Python too, and not what was written.
    if strange or values.get("ttl", b"").decode() != _ttl_text(info["ttl"]):
        raise DamagedRecordError(f"the record of session {info['session_id']!r} is not as it was written")
    texts = values["metadata"].decode(), values["state"].decode()
    return SessionRecord(
        **info,
        tail=np.frombuffer(values["tail"], "<i4").astype(np.int32),
        state=unsealed(SessionInfo(**info), values["tail"], prefixes, *texts),
        prefixes=prefixes,
        fence=fence,
    )


def _info(values: Mapping[str, bytes | None]) -> dict[str, Any]:
    """A server from before there were ``keep`` and ``ttl`` may have stored none."""
    fields: dict[str, Any] = {name: value.decode() if value is not None else "" for name, value in values.items()}
    for name, kind in NUMBERS.items():
        fields[name] = kind(fields[name])
    for name in TIMES:
        fields[name] = float(fields[name])
    for name in FLAGS:
        fields[name] = fields[name] == "1"
    fields["metadata"] = json.loads(fields["metadata"])
    fields["ttl"] = float(fields["ttl"]) if fields["ttl"] else None
    fields["gist_blocks"] = int(fields["gist_blocks"]) if fields["gist_blocks"] else None
    return fields


def _ttl_text(ttl: float | None) -> str:
    return "" if ttl is None else repr(float(ttl))


def changing_fields(encoded: EncodedRecord) -> list[Any]:
    """What a commit replaces, and what must stay, as (name, value, name, value, ...)."""
    record = encoded.record
    info = {name: getattr(record, name) for name in INFO_FIELDS if name not in COUNTED_FIELDS}
    fields: dict[str, Any] = info | {
        "created": repr(record.created) if record.created else "",
        "metadata": encoded.metadata,
        **{name: int(getattr(record, name)) for name in FLAGS},
        "ttl": _ttl_text(record.ttl),
        "state": encoded.state,
        "tail": record.tail.astype("<i4").tobytes(),
        "prefixes": json.dumps(list(dict.fromkeys(record.prefixes))),
    }
    return [part for pair in fields.items() for part in pair]


def new_fields(encoded: EncodedRecord) -> list[Any]:
    """All that the script doesn't fill in by itself when it creates a session."""
    return [*changing_fields(encoded), "widths", _widths(encoded.record), "model_key", key_part(encoded.record.model)]


def shape_fields(info: SessionInfo) -> list[Any]:
    """What a reshape replaces, as (name, value, name, value, ...)."""
    return [part for name in SHAPE_FIELDS for part in (name, getattr(info, name))] + ["widths", _widths(info)]


def derived_fields(flat: Sequence[bytes]) -> list[str]:
    """Names of those fields of a session's hash that are made of others, and are not what these say."""
    values = dict(zip(flat[::2], flat[1::2], strict=True))
    info = SessionInfo(**_info({name: values.get(name.encode()) for name in INFO_FIELDS}))
    right = {b"model_key": key_part(info.model), b"widths": _widths(info)}
    return [name.decode() for name, value in right.items() if values.get(name) != value.encode()]


def _widths(info: SessionInfo) -> str:
    """Bytes of a row at each level that the session has, as JSON."""
    levels = range(MAX_LEVEL + 1) if info.gist_dim else range(1)
    return json.dumps([RowFormat.of(info, level).dtype.itemsize for level in levels])
