"""The APIs that are served; a new one needs its line here."""

from __future__ import annotations

from server.apis.api import Api
from server.apis.chat.routes import API as CHAT
from server.apis.completions.routes import API as COMPLETIONS
from server.apis.conversations.routes import API as CONVERSATIONS
from server.apis.embeddings.routes import API as EMBEDDINGS
from server.apis.focus.routes import API as FOCUS
from server.apis.ingest.routes import API as INGEST
from server.apis.messages.routes import API as MESSAGES
from server.apis.models.routes import API as MODELS
from server.apis.operations.routes import API as OPERATIONS
from server.apis.page.routes import API as PAGE
from server.apis.requests.routes import API as REQUESTS
from server.apis.responses.routes import API as RESPONSES
from server.apis.sessions.routes import API as SESSIONS

APIS: tuple[Api, ...] = (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    CONVERSATIONS,
    EMBEDDINGS,
    MODELS,
    SESSIONS,
    FOCUS,
    INGEST,
    REQUESTS,
    OPERATIONS,
    PAGE,
)
