"""Everyday prose, written by hand and never trained on: what somebody says, and what is asked about it later."""

from mc_core.lab.tasks.plain.chats import PASTED, Chat, Turn, chats, talk
from mc_core.lab.tasks.plain.statements import WRITTEN, Statement, read_statements, statements

__all__ = ["PASTED", "WRITTEN", "Chat", "Statement", "Turn", "chats", "read_statements", "statements", "talk"]
