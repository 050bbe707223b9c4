"""``megacontext settings``: every setting of the server as one table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from server.commands.common import plain_errors
from server.commands.options import Field, fields_of
from server.settings import Settings

BEGIN, END = "<!-- settings: made by `make docs` -->", "<!-- /settings -->"


def settings(
    into: Annotated[
        Path | None, typer.Option("--into", help="replace the table in this file instead of showing it")
    ] = None,
) -> None:
    """Show all settings of the server: flag, environment variable, default, meaning."""
    with plain_errors():
        if into is None:
            typer.echo(table())
        else:
            into.write_text(replaced(into.read_text("utf-8")), "utf-8")


def table() -> str:
    """A Markdown table with a row for each setting, in the order of the settings class."""
    head = ["| flag | environment | default | meaning |", "| --- | --- | --- | --- |"]
    rows = [f"| `{f.flag}` | `{f.env}` | {_default(f.default)} | {_meaning(f)} |" for f in fields_of(Settings)]
    return "\n".join(head + rows)


def replaced(text: str) -> str:
    """``text`` with the present table between its two marks. typer.BadParameter if it does not have both once."""
    parts = re.split(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", text, flags=re.DOTALL)
    if len(parts) != 2:
        raise typer.BadParameter(f"the file must hold {BEGIN} and {END} once")
    return f"{parts[0]}{BEGIN}\n\n{table()}\n\n{END}{parts[1]}"


def _default(value: Any) -> str:
    if value is None or value == []:
        return ""
    return f"`{value}`"


def _meaning(field: Field) -> str:
    text = field.help.replace("|", "\\|")
    if get_origin(field.kind) is Literal:
        text += f" ({', '.join(f'`{choice}`' for choice in get_args(field.kind))})"
    return text
