"""Hashes of message lists: sessions remember them, and are found and recognised by them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from server.templates.chat_template import Message
from server.tools.tool import ToolUse

MAX_PREFIXES = 256
"""Hashes that a session remembers."""
OLDEST, NEWEST = 32, 96
"""Of these all stay; those between become sparser, the older the more, so that no length of a chat is out of reach."""
FIRST_PART = 1024
"""Characters of the shortest beginning of a message that has a hash of its own; each further one is twice as long."""


def seed_of(use: ToolUse | None) -> str:
    """What the chain of a conversation begins with: with other tools it is another conversation."""
    return f"tools {use.digest}" if use is not None and use.tools else ""


def chain_hash(before: str, message: Message) -> str:
    """Hash of all messages up to and with this one."""
    named = () if message.name is None else (message.name,)
    calls = [part for call in message.tool_calls for part in ("\0call", call.id, call.name, call.canonical)]
    answers = () if message.tool_call_id is None else ("\0answers", message.tool_call_id)
    return _digest(before, message.role, message.content, *named, *calls, *answers)


def hash_chain(messages: Sequence[Message], before: str = "") -> list[str]:
    """One hash for each prefix of the messages that holds at least one, behind those that ``before`` stands for."""
    chain, digest = [], before
    for message in messages:
        digest = chain_hash(digest, message)
        chain.append(digest)
    return chain


def part_hashes(before: str, message: Message) -> list[str]:
    """Hashes of the beginnings of a long message, shortest first: with them a list is found that differs inside it."""
    return [_digest(before, "part", message.role, message.content[:size]) for size in _sizes(len(message.content))]


def all_hashes(messages: Sequence[Message], before: str = "") -> list[str]:
    """The hashes of all messages and of their beginnings, shortest prefix first."""
    hashes = []
    for message in messages:
        hashes += part_hashes(before, message)
        before = chain_hash(before, message)
        hashes.append(before)
    return hashes


def bounded(prefixes: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """At most MAX_PREFIXES of them."""
    kept = list(prefixes)
    while len(kept) > MAX_PREFIXES:
        kept = [*kept[:OLDEST], *kept[OLDEST:-NEWEST:2], *kept[-NEWEST:]]
    return kept


def _sizes(length: int) -> Iterator[int]:
    size = FIRST_PART
    while size < length:
        yield size
        size *= 2


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
