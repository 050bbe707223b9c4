"""API keys, and the tenant that each stands for."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from pydantic import SecretStr

from server.errors import unauthorized

OPEN_TENANT = "open"
"""Everybody's tenant when the server has no keys."""


class Keys:
    """Maps a key to its tenant: a hash, so that no key is ever stored or logged."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._keys = [key.get_secret_value().encode() for key in keys]

    def tenant(self, authorization: str | None, api_key: str | None = None) -> str:
        """The tenant of an ``Authorization`` header, or of an ``X-API-Key`` where that one holds no bearer key.

        ApiError 401 if the key is missing or unknown.
        """
        if not self._keys:
            return OPEN_TENANT
        scheme, _, bearer = (authorization or "").partition(" ")
        given = bearer if scheme.lower() == "bearer" and bearer.strip() else api_key or ""
        if not given.strip():
            raise unauthorized("send an API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'", "missing_key")
        # Every key is compared, so that timing tells nothing.
        matches = [hmac.compare_digest(key, given.strip().encode()) for key in self._keys]
        if not any(matches):
            raise unauthorized("unknown API key", "invalid_api_key")
        key = self._keys[matches.index(True)]
        return hashlib.sha256(b"megacontext-tenant:" + key).hexdigest()[:32]
