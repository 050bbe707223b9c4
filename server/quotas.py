"""How much each key may ask for in a minute: requests, and tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.errors import ApiError

MINUTE = 60.0


@dataclass
class Bucket:
    """What is left of a limit. It fills up steadily, all of it in a minute; below 0 it is a debt."""

    limit: int
    level: float
    at: float

    def fill(self, now: float) -> None:
        self.level = min(self.limit, self.level + (now - self.at) * self.limit / MINUTE)
        self.at = now

    def until(self, level: float) -> float:
        """Seconds until so much is there."""
        return max(0.0, (level - self.level) * MINUTE / self.limit)


class Quotas:
    """The limits of one server, by tenant; None: there is none. For one thread, the event loop's.

    A request is let in while there are tokens left, whatever it will take; what it took is taken off afterwards. So a
    key that took more than it had waits until that is paid off.
    """

    def __init__(
        self, requests: int | None, tokens: int | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = {"requests": requests, "tokens": tokens}
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def admit(self, tenant: str) -> dict[str, str]:
        """Let a request in -> the headers that tell what is left. ApiError 429 with the same if there is nothing."""
        for kind, bucket in self._of(tenant):
            if (wait := bucket.until(1)) > 0:
                seconds = math.ceil(wait)
                raise ApiError(
                    429,
                    f"this key has used up its {bucket.limit:,} {kind} a minute; try again in {seconds} s",
                    "rate_limit_error",
                    "rate_limit_exceeded",
                    retry_after=seconds,
                    more=self.headers(tenant),
                )
        self._take("requests", tenant, 1)
        return self.headers(tenant)

    def spend(self, tenant: str, tokens: int) -> None:
        """Tokens that were read or generated for a tenant."""
        self._take("tokens", tenant, tokens)

    def headers(self, tenant: str) -> dict[str, str]:
        """As OpenAI tells them; reset: how long until all is there again."""
        return {
            f"x-ratelimit-{name}-{kind}": value
            for kind, bucket in self._of(tenant)
            for name, value in (
                ("limit", str(bucket.limit)),
                ("remaining", str(max(0, math.floor(bucket.level)))),
                ("reset", f"{bucket.until(bucket.limit):.3f}s"),
            )
        }

    def _take(self, kind: str, tenant: str, amount: int) -> None:
        for name, bucket in self._of(tenant):
            if name == kind:
                bucket.level -= amount

    def _of(self, tenant: str) -> Iterator[tuple[str, Bucket]]:
        now = self._clock()
        for kind, limit in self._limits.items():
            if limit is not None:
                bucket = self._buckets.setdefault((kind, tenant), Bucket(limit, limit, now))
                bucket.fill(now)
                yield kind, bucket
