"""Lists of items, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from server.apis.responses.protocol import ItemList
from server.errors import bad_request

Order = Literal["asc", "desc"]


def page(items: Sequence[dict[str, Any]], limit: int, order: Order, after: str | None) -> ItemList:
    """At most ``limit`` of the items, which come oldest first, behind the one called ``after``."""
    told = list(items) if order == "asc" else list(items)[::-1]
    if after is not None:
        place = next((i for i, item in enumerate(told) if item["id"] == after), None)
        if place is None:
            raise bad_request("after names no item of this list", "after")
        told = told[place + 1 :]
    shown = told[:limit]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return ItemList(data=shown, first_id=first, last_id=last, has_more=len(told) > limit)
