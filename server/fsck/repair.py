"""Mends a session with what is sound of it; nothing is made up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mc_core.session.cut_end import CUT_OFF
from mc_core.store import MAX_LIST, SessionRecord, SessionStore
from server.fsck.audit import Finding
from server.transfer.covering import covering
from server.turns.message_notes import PREFIX, Listed, with_gap

OWNER = "megacontext fsck"


@dataclass(frozen=True)
class Allowed:
    """What may be lost for good. cut: the history from its first lost block on. drop_notes: corrupt notes."""

    cut: bool = False
    drop_notes: bool = False


def repair(store: SessionStore, finding: Finding, allowed: Allowed) -> str | None:
    """What was done; None if nothing can be, or it is not allowed. LeaseHeldError while a server has the session."""
    tenant, session = finding.tenant, finding.session
    match finding.kind:
        case "import":
            store.open(session, tenant, OWNER).result()
            store.delete(session, tenant).result()
            return "deleted what the import left"
        case "gists":
            return _with_lease(store, finding, _drop_gists)
        case "prefixes":
            return _with_lease(store, finding, _index_anew)
        case "spans" if allowed.cut:
            return _with_lease(store, finding, _cut)
        case "notes" if allowed.drop_notes and finding.keys:
            return _with_lease(store, finding, _drop_notes)
    return None


def _with_lease(store: SessionStore, finding: Finding, mend: Any) -> str:
    opened = store.open(finding.session, finding.tenant, OWNER).result()
    try:
        done: str = mend(store, opened.record, finding)
        return done
    finally:
        store.release(finding.session, opened.fence).result()


def _drop_gists(store: SessionStore, record: SessionRecord, finding: Finding) -> str:
    shape = {name: getattr(record, name) for name in ("gist_dim", "gist_dtype", "gist_keys", "key_dim")}
    store.reshape(record.session_id, record.fence, **shape).result()
    return "dropped its gists and lens keys; they are made of its tokens when it is used next"


def _index_anew(store: SessionStore, record: SessionRecord, finding: Finding) -> str:
    store.commit(replace(record, prefixes=())).result()
    store.commit(record).result()
    return "indexed its beginnings anew"


def _drop_notes(store: SessionStore, record: SessionRecord, finding: Finding) -> str:
    # A turn that a crash cut off keeps its messages for the server that ends it; a commit of ours would drop them.
    told = CUT_OFF not in record.state and any(key.startswith(PREFIX) for key in finding.keys)
    if told:
        record = replace(record, state={**record.state, "chat": with_gap(record.state.get("chat", {}))})
        store.commit(record).result()
    for key in finding.keys:
        store.delete_note(record.session_id, record.tenant, key).result()
    if told:
        _tell_gaps(store, record)
    return f"deleted {len(finding.keys)} corrupt notes"


def _tell_gaps(store: SessionStore, record: SessionRecord) -> None:
    """Have messages behind one that is gone say that the list is not whole."""
    after, number, gap = None, 0, False
    while True:
        page = store.notes(record.session_id, record.tenant, prefix=PREFIX, after=after, limit=MAX_LIST).result()
        behind = []
        for listed in map(Listed.read, page.notes):
            gap = gap or listed.number != number
            number = listed.number + 1
            if gap and listed.place.whole:
                behind.append(replace(listed, place=replace(listed.place, whole=False)).note())
        if behind:
            store.commit(record, behind).result()
        if (after := page.next) is None:
            return


def _cut(store: SessionStore, record: SessionRecord, finding: Finding) -> str:
    tokens = finding.first * record.block_size
    store.commit(
        replace(
            record,
            tokens=tokens,
            tail=np.empty(0, np.int32),
            # As one that was rewound by nobody: its messages are as the store lists them.
            state=covering(record.state, tokens, lambda token: min(token, tokens)),
            prefixes=tuple((key, at) for key, at in record.prefixes if at <= tokens),
        )
    ).result()
    return f"cut its history from {record.tokens} to {tokens} tokens"
