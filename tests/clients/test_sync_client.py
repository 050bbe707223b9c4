"""The synchronous client is the asynchronous one without the waiting."""

from __future__ import annotations

import pytest

from clients.sync_from_async import PACKAGE, SOURCES, synchronous


@pytest.mark.parametrize("source", SOURCES)
def test_the_synchronous_client_is_written_from_its_source(source: str) -> None:
    """Law: what stands in the synchronous files is what ``python -m clients.sync_from_async`` writes, and waits."""
    written = (PACKAGE / SOURCES[source]).read_text(encoding="utf-8")
    assert written == synchronous(source)
    assert not any(word in written for word in ("async def", "await ", "Async", "aread", "aclose"))
