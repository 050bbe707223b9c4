"""What a request expects of the session that it changes: that nobody else changed it, or that nobody uses it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.errors import ApiError, bad_request

_ONE = r'(?:W/)?"[^"]*"'
_LIST = re.compile(rf"\*|{_ONE}(?:[ \t]*,[ \t]*{_ONE})*")


def etag(sequence: int) -> str:
    """The tag of a session at a sequence number: it counts what was stored of it."""
    return f'"{sequence}"'


@dataclass(frozen=True)
class Condition:
    """tags: one of them is the session's, when its turn has come; None: any. waits: for others who use it."""

    tags: tuple[str, ...] | None = None
    waits: bool = True

    @classmethod
    def of(cls, if_match: str, if_busy: str) -> Condition:
        """From headers. A weak tag (W/) is none that a session has. ApiError 400 for no list of tags."""
        if not _LIST.fullmatch(if_match):
            raise bad_request('If-Match must be * or ETags, such as "7"', "If-Match", "invalid_value")
        return cls(None if if_match == "*" else tuple(re.findall(_ONE, if_match)), if_busy == "wait")

    def __bool__(self) -> bool:
        return self.tags is not None or not self.waits

    def check(self, session_id: str, sequence: int) -> None:
        """ApiError 412 if the session has moved on."""
        if self.tags is not None and etag(sequence) not in self.tags:
            expected = ", ".join(self.tags)[:200]
            raise ApiError(
                412,
                f"session {session_id} is at {etag(sequence)}, and not at {expected}: something was stored since you"
                " looked; nothing was done",
                code="session_changed",
                param="If-Match",
            )

    def check_free(self, session_id: str, users: int) -> None:
        """ApiError 409 if others use the session, and the request does not wait."""
        if users and not self.waits:
            raise ApiError(
                409, f"session {session_id} is in use, and X-If-Busy says not to wait", code="session_in_use"
            )

    def needs_session(self) -> None:
        """ApiError 400 for a request that names no session."""
        if self:
            raise bad_request("If-Match and X-If-Busy need a session that the request names", "If-Match")


NONE = Condition()
