"""Several conversations at once with the asynchronous client (``pip install ./clients``).

MEGACONTEXT_URL and MEGACONTEXT_API_KEY name the server and its key, if it has any.
"""

from __future__ import annotations

import asyncio
import os

from megacontext_client import AsyncMegaContext

LOGS = {
    "north": "Day 1: the lamp of the north tower needs oil every 4711 turns.",
    "south": "Day 1: the lamp of the south tower needs oil every 1174 turns.",
}


async def ask(server: AsyncMegaContext, tower: str) -> str:
    """A session of its own: read the log, ask about it, tell what was in view."""
    session = await server.create_session(metadata={"tower": tower}, system="Answer from the log.")
    try:
        added = await server.ingest(session.id, LOGS[tower])
        text = ""
        async with await server.chat(session.id, "When does the lamp need oil?", stream=True, max_tokens=32) as stream:
            async for delta in stream:
                text += delta.content
        seen = stream.result.x_megacontext
        return f"{tower}: {added.tokens_added} tokens read, {seen['raw']} of {seen['tokens']} in view\n  {text!r}"
    finally:
        await server.delete(session.id)


async def main() -> None:
    url = os.environ.get("MEGACONTEXT_URL", "http://127.0.0.1:8000")
    async with AsyncMegaContext(url, os.environ.get("MEGACONTEXT_API_KEY")) as server:
        for answer in await asyncio.gather(*(ask(server, tower) for tower in LOGS)):
            print(answer)


if __name__ == "__main__":
    asyncio.run(main())
