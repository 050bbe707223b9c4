"""A session that begins as a part of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mc_core.context.protection import Range
from mc_core.context.sources import Sources
from mc_core.session.cut_end import CUT_OFF
from mc_core.session.session import Session
from mc_core.store import SessionRecord

OWN_STATE = ("context", "allocator", "counters", "budget", "chat", "ingest_cut")
"""Parts of a session's state that it does not share with the session it was forked from."""


def fork_record(
    session: Session,
    parent: SessionRecord,
    tokens: int,
    tail: NDArray[np.int32],
    pins: Sequence[Range],
    chosen: Sequence[Range] = (),
) -> SessionRecord:
    """What makes ``session``, a new and empty one, of the first ``tokens`` of ``parent``, whose rows it shares.

    tail: those of them that fill no block. It sees them as coarse as can be until its first turn; ``pins`` stay raw for
    good, ``chosen`` until they are let go.
    """
    for start, end in pins:
        session.pin(start, end)
    session.wc.choose(chosen)
    session.wc.cover(tokens, reserve=session.focus_config.refocus_interval)
    own = session.record()
    return replace(
        parent,
        session_id=session.id,
        metadata=own.metadata,
        implicit=own.implicit,
        keep=own.keep,
        ttl=own.ttl,
        tokens=tokens,
        tail=tail,
        # What tells with which networks the shared rows were made stays the parent's.
        state={
            **{name: value for name, value in parent.state.items() if name != CUT_OFF},
            **{name: own.state[name] for name in OWN_STATE},
            "sources": Sources.of_json(parent.state.get("sources", ())).cut(tokens).json(),
        },
        prefixes=(),
        created=own.created,
        fence=0,
    )
