"""Commands by name: the module of one is imported when it is run or asked for help, and no other with it."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class LazyGroup(TyperGroup):
    """Knows its commands by name, and where each stands: "module:callback", or "module:maker()" that makes one."""

    places: ClassVar[dict[str, str]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.places, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.places:
            return super().get_command(ctx, cmd_name)
        module, _, name = self.places[cmd_name].partition(":")
        callback = getattr(import_module(module), name.removesuffix("()"))
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(callback() if name.endswith("()") else callback)
        return typer.main.get_command(single)


class MainGroup(LazyGroup):
    """``megacontext``."""

    places: ClassVar[dict[str, str]] = {
        "serve": "server.commands.serve:serve_command()",
        "doctor": "server.commands.doctor:doctor_command()",
        "chat": "server.commands.talk:chat",
        "ingest": "server.commands.talk:ingest",
        "settings": "server.commands.settings:settings",
        "load": "server.commands.load:load_command()",
        "fsck": "server.commands.fsck:fsck",
        "ablate": "server.commands.lab.ablate:ablate",
    }


class ModelGroup(LazyGroup):
    """``megacontext model``."""

    places: ClassVar[dict[str, str]] = {"fetch": "server.commands.model:fetch"}


class SessionsGroup(LazyGroup):
    """``megacontext sessions``."""

    places: ClassVar[dict[str, str]] = {
        "list": "server.commands.sessions:list_sessions",
        "show": "server.commands.sessions:show",
        "export": "server.commands.sessions:export",
        "import": "server.commands.sessions:import_session",
        "keep": "server.commands.sessions:keep",
        "migrate": "server.commands.migrate:migrate",
        "delete": "server.commands.sessions:delete",
    }


class TrainGroup(LazyGroup):
    """``megacontext train``."""

    places: ClassVar[dict[str, str]] = {
        "base": "server.commands.lab.train_base:base_command()",
        "focus": "server.commands.lab.train_focus:focus_command()",
        "joint": "server.commands.lab.train_focus:joint_command()",
        "lens": "server.commands.lab.train_lens:lens_command()",
    }


class EvalGroup(LazyGroup):
    """``megacontext eval``: whatever is no command of its own is taken for suites to run."""

    places: ClassVar[dict[str, str]] = {
        "suites": "server.commands.lab.eval_suites:suites_command()",
        "base": "server.commands.lab.eval_base:base_command()",
        "real": "server.commands.lab.eval_real:real_command()",
    }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in self.places:
            return super().resolve_command(ctx, args)
        return "suites", self.get_command(ctx, "suites"), args
