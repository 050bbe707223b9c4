"""Pages of a list of sessions, the same in every store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mc_core.errors import MegaContextError
from mc_core.store import SessionInfo, SessionPage, encode_cursor
from server.stores.arguments import INFO_FIELDS

logger = logging.getLogger(__name__)
Row = TypeVar("Row", bound=Sequence[Any])
CREATED, ID = INFO_FIELDS.index("created"), INFO_FIELDS.index("session_id")


def page_of(rows: Sequence[Row], limit: int, info_of: Callable[[Row], SessionInfo]) -> SessionPage:
    """The first ``limit`` of these rows of INFO_FIELDS; one more of them tells that the list goes on.

    A damaged one is left out, so that it does not take the others with it; who asks for it alone is told.
    """
    shown = []
    for row in rows[:limit]:
        try:
            shown.append(info_of(row))
        except (MegaContextError, ValueError, TypeError):
            logger.warning("session %r can't be listed: megacontext fsck tells more", _text(row[ID]))
    last = rows[limit - 1] if len(rows) > limit else None
    return SessionPage(tuple(shown), encode_cursor(float(last[CREATED]), _text(last[ID])) if last else None)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
