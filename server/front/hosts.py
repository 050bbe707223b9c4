"""Under which names an open server answers: a web page must not reach it by a name of its own (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from server.errors import ApiError


class Hosts:
    """The names by which a server without keys may be asked.

    Always: addresses as numbers, for no name points anywhere else there; localhost; the name that it listens on; the
    machine's own. ``more``: further ones, ``*.example.org`` for all below a name, ``*`` for any.
    """

    def __init__(self, listening: str, more: Sequence[str]) -> None:
        names = {"localhost", "*.localhost", listening, socket.gethostname(), *more}
        self._names = {name.lower() for name in names if name}

    def check(self, host: str) -> None:
        """ApiError 403 for a ``Host`` header that names somebody else; browsers always send one."""
        name = _name(host)
        if not name or _is_address(name) or not self._names.isdisjoint(("*", name, *_above(name))):
            return
        raise ApiError(
            403,
            f"this server has no API key and does not answer as {name[:200]!r}: start it with --allowed-host, "
            "or with --api-key",
            "permission_error",
            "host_not_allowed",
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _name(host: str) -> str:
    """A ``Host`` header without its port: lower case, no brackets, no dot at the end."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def _above(name: str) -> list[str]:
    """a.b.c -> *.b.c and *.c."""
    parts = name.split(".")
    return ["*." + ".".join(parts[at:]) for at in range(1, len(parts))]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
