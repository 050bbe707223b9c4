"""docs/api.md tells every field, parameter, address and error code of the server, and no others."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

import server.apis
import server.protocol
from mc_core.focus.reasons import Reason
from server.app import build_app
from server.errors import CLIENT_CLOSED_REQUEST, ApiError
from server.settings import Settings

ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs" / "api.md").read_text("utf-8")
PROTOCOL = [
    importlib.import_module(found.name)
    for package in (server.protocol, server.apis)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if "protocol" in found.name and not found.name.endswith("strict")
]
CLASSES = {
    name: value
    for module in PROTOCOL
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__
}
CODE_AT = {"ApiError": 3, "bad_request": 2, "not_found": 1, "unauthorized": 1}
"""Makers of errors, and the place of the code among their arguments."""
STATUS = {"bad_request": 400, "not_found": 404, "unauthorized": 401}


def tables(mark: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """(words of the mark, rows of cells) of each table that stands behind a ``<!-- mark: words -->``."""
    for words, table in re.findall(rf"<!-- {mark}:? ?(.*?) ?-->\n\n((?:\|.*\n)+)", DOC):
        yield words.split(), [row.strip("|\n").split(" | ") for row in table.splitlines()[2:]]


def named(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def told(rows: list[list[str]]) -> set[str]:
    return set().union(*(named(row[0]) for row in rows))


def own_fields(model: type[BaseModel]) -> set[str]:
    """As JSON calls them."""
    return {field.alias or name for name, field in model.model_fields.items() if name in model.__annotations__}


def test_every_model_has_its_table() -> None:
    """Law: each class of the protocol that has fields is told once."""
    marked = [name for words, _ in tables("fields") for name in words]
    assert len(marked) == len(set(marked))
    assert set(marked) == {name for name, model in CLASSES.items() if own_fields(model)}


@pytest.mark.parametrize("names", [" ".join(words) for words, _ in tables("fields")])
def test_a_table_tells_the_fields(names: str) -> None:
    """Law: a table's first column names the fields of its classes, all of them and nothing else."""
    (rows,) = [rows for words, rows in tables("fields") if words == names.split()]
    assert told(rows) == set().union(*(own_fields(CLASSES[name]) for name in names.split()))


def test_every_address_and_parameter_is_told() -> None:
    """Law: headings name each method and address that there is; parameters of a query have a table."""
    paths = get_openapi(title="", version="", routes=build_app(Settings(model="tiny")).routes)["paths"]
    addresses = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    headings = " ".join(line for line in DOC.splitlines() if line.startswith("#"))
    found = {f"{method} {re.sub(r'{model:path}', '{model}', path)}" for method, path in _addresses(headings)}
    assert found == {address.replace("{model:path}", "{model}") for address in addresses}
    asked = {
        f"{method.upper()} {path}": {one["name"] for one in operation["parameters"] if one["in"] == "query"}
        for path, methods in paths.items()
        for method, operation in methods.items()
        if any(one["in"] == "query" for one in operation.get("parameters", ()))
    }
    assert {" ".join(words): told(rows) for words, rows in tables("parameters")} == asked


def _addresses(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\b(GET|POST|PATCH|DELETE) (/[^\s,]*)", text)


def test_every_error_code_is_told() -> None:
    """Law: the codes that the server's source makes, each with its status, are those of the table."""
    (rows,) = [rows for _, rows in tables("codes")]
    in_doc = {(code, int(row[1])) for row in rows for code in named(row[0])}
    assert in_doc == set(_codes())


def _codes() -> Iterator[tuple[str, int]]:
    for file in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CODE_AT:
                yield from _code_of(node, node.func.id)


def _code_of(call: ast.Call, maker: str) -> Iterator[tuple[str, int]]:
    given = {word.arg: word.value for word in call.keywords}
    at = CODE_AT[maker]
    code = given.get("code", call.args[at] if len(call.args) > at else None)
    if isinstance(code, ast.Constant) and isinstance(code.value, str):
        yield code.value, STATUS.get(maker) or _status(call.args[0])


def _status(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id="CLIENT_CLOSED_REQUEST"):
            return CLIENT_CLOSED_REQUEST
    return 404  # whatever the framework refuses of itself: an address that there is not


def test_error_types_are_told() -> None:
    """Law: the kinds of errors in the table are those that are made."""
    source = "".join(file.read_text("utf-8") for file in (ROOT / "server").rglob("*.py"))
    made = set(re.findall(r'"(\w+_error)"', source)) & set(re.findall(r"`(\w+_error)`", DOC))
    (row,) = [row for words, rows in tables("fields") if "ErrorDetail" in words for row in rows if row[0] == " `type`"]
    assert named(row[1]) <= made
    assert ApiError(400, "").type in named(row[1])


def test_reasons_are_told_once() -> None:
    """Law: of all pages one table alone tells why entries stand raw, and it tells each reason that there is."""
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    (table,) = re.findall(r"\| `?reason`? \| the entry \|\n.*\n((?:\|.*\n)+)", pages)
    assert [named(row.split("|")[1]) for row in table.splitlines()] == [{reason} for reason in get_args(Reason)]
