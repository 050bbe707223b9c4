"""A thin client of a MegaContext server, synchronous and asynchronous; needs httpx alone.

with MegaContext("http://127.0.0.1:8000") as server:
    session = server.create_session(system="Answer from the book.")
    server.ingest(session.id, Path("book.txt"))
    for delta in server.chat(session.id, "Who is Queequeg?", stream=True):
        print(delta.content, end="", flush=True)
"""

from .async_client import AsyncMegaContext
from .async_stream import AsyncChatStream
from .calls import TextKind
from .client import MegaContext
from .errors import APIConnectionError, APIError, ClientError, StreamEndedError, StreamLostError
from .stream import ChatStream
from .types import (
    ChatResult,
    Delta,
    Focus,
    FocusEntry,
    Ingested,
    Model,
    Session,
    SessionMessage,
    SessionPage,
    Usage,
)

__all__ = [
    "APIConnectionError",
    "APIError",
    "AsyncChatStream",
    "AsyncMegaContext",
    "ChatResult",
    "ChatStream",
    "ClientError",
    "Delta",
    "Focus",
    "FocusEntry",
    "Ingested",
    "MegaContext",
    "Model",
    "Session",
    "SessionMessage",
    "SessionPage",
    "StreamEndedError",
    "StreamLostError",
    "TextKind",
    "Usage",
]
