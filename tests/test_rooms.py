"""The rooms of the house: which way imports may point (docs/architecture.md)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import grimp
import pytest

LAYERS = [
    "mc_core.lab",
    "mc_core.engine",
    "mc_core.session",
    "mc_core.bundle",
    "mc_core.kv",
    "mc_core.focus",
    "mc_core.context",
    "mc_core.tree",
    {"mc_core.positions", "mc_core.nets"},
    "mc_core.models",
    "mc_core.store",
    "mc_core.notes",
    "mc_core.errors",
]
"""A room may use those below it, never one above or beside it."""
LAB = ["evaluation", "controller", "training", "tasks", "data", "key_clusters"]
FOREIGN = {
    "mc_core": {"fastapi", "starlette", "uvicorn", "httpx", "opentelemetry", "prometheus_client", "redis", "sqlite3"},
    "clients": {"mc_core", "server", "torch"},
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("mc_core", "server", "clients", include_external_packages=True, cache_dir=None)


def test_each_room_of_the_library_uses_only_those_below_it(graph: grimp.ImportGraph) -> None:
    """No room of mc_core imports one above or beside it, so there are no cycles between rooms."""
    layers = [grimp.Layer(*layer) if isinstance(layer, set) else layer for layer in LAYERS]
    assert graph.find_illegal_dependencies_for_layers(layers) == set()
    named = {room for layer in LAYERS for room in (layer if isinstance(layer, set) else {layer})}
    assert named == graph.find_children("mc_core")


def test_each_room_of_the_lab_uses_only_those_below_it(graph: grimp.ImportGraph) -> None:
    """Tasks know no training and training no evaluation."""
    assert graph.find_illegal_dependencies_for_layers([f"mc_core.lab.{room}" for room in LAB]) == set()
    assert {f"mc_core.lab.{room}" for room in LAB} == graph.find_children("mc_core.lab")


def test_no_rooms_of_the_server_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    """Whoever reads a room of the server need not read who uses it."""
    rooms = graph.find_children("server")
    arrows = {
        room: {
            other
            for other in rooms - {room}
            if graph.direct_import_exists(importer=room, imported=other, as_packages=True)
        }
        for room in rooms
    }
    circles = [room for room in rooms if room in _reached(room, arrows)]
    assert circles == []


def test_nothing_that_serves_imports_research() -> None:
    """A running server has no module of the lab loaded."""
    code = "import sys, server.cli, server.commands.serve, server.serve; print([m for m in sys.modules if '.lab' in m])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_rooms_import_no_library_that_is_not_theirs(graph: grimp.ImportGraph) -> None:
    """The library knows no web, telemetry or store package, and clients know neither library nor server."""
    for room, foreign in FOREIGN.items():
        inside = graph.find_descendants(room) | {room}
        used = {
            other.partition(".")[0] for module in inside for other in graph.find_modules_directly_imported_by(module)
        }
        assert used & foreign == set(), room


def _reached(start: str, arrows: dict[str, set[str]]) -> Iterator[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for other in arrows[waiting.pop()] - seen:
            seen.add(other)
            waiting.append(other)
            yield other
