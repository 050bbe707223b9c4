"""The ``train`` and ``eval`` groups, whose options come from the trainer: it is imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class LazyGroup(TyperGroup):
    """Knows its commands by name, and where each is made ("module:function"); builds one when it is asked for."""

    makers: ClassVar[dict[str, str]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.makers)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.makers:
            return None
        module, _, function = self.makers[cmd_name].partition(":")
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(getattr(import_module(module), function)())
        return typer.main.get_command(single)


class LazyTrainGroup(LazyGroup):
    """``megacontext train``."""

    makers: ClassVar[dict[str, str]] = {
        "base": "server.commands.train:base_command",
        "focus": "server.commands.train_focus:focus_command",
        "joint": "server.commands.train_focus:joint_command",
        "lens": "server.commands.train_lens:lens_command",
    }


class LazyEvalGroup(LazyGroup):
    """``megacontext eval``: whatever is no command of its own is taken for suites to run."""

    makers: ClassVar[dict[str, str]] = {
        "suites": "server.commands.evaluate_suites:suites_command",
        "base": "server.commands.evaluate:base_command",
    }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in self.makers:
            return super().resolve_command(ctx, args)
        return "suites", self.get_command(ctx, "suites"), args
