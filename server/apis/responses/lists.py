"""Lists of items, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from server.apis.responses.lists_protocol import ItemList
from server.errors import ApiError, bad_request

Order = Literal["asc", "desc"]


def page(items: Sequence[dict[str, Any]], limit: int, order: Order, after: str | None) -> ItemList:
    """At most ``limit`` of the items, which come oldest first, behind the one called ``after``."""
    told = list(items) if order == "asc" else list(items)[::-1]
    if after is not None:
        place = next((i for i, item in enumerate(told) if item["id"] == after), None)
        if place is None:
            raise no_such_place()
        told = told[place + 1 :]
    return shown(told[:limit], has_more=len(told) > limit)


def shown(items: Sequence[dict[str, Any]], *, has_more: bool) -> ItemList:
    """These items as a page."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return ItemList(data=list(items), first_id=first, last_id=last, has_more=has_more)  # type: ignore[arg-type]


def no_such_place() -> ApiError:
    return bad_request("after names no item of this list", "after")
