"""The files of a deployment, read for tests: compose, Dockerfile, dashboard, rules; and what PromQL asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from server.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KNOWN_SETTINGS = {f"MEGACONTEXT_{name}".upper() for name in Settings.model_fields}
MADE_BY_PROMETHEUS = {"up"}
LABELS_OF_SCRAPES = {"job", "instance"}
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}


def read_yaml(path: Path) -> Any:
    """The one document of a file."""
    return yaml.safe_load(path.read_text("utf-8"))


def compose() -> dict[str, Any]:
    """docker-compose.yml with its anchors resolved."""
    loaded: dict[str, Any] = read_yaml(ROOT / "docker-compose.yml")
    return loaded


@dataclass
class Stage:
    """One FROM of a Dockerfile: (instruction, argument) in order."""

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, instruction: str) -> list[str]:
        return [argument for name, argument in self.lines if name == instruction]


def dockerfile() -> dict[str, Stage]:
    """Stages by name; continued lines are joined, comments and what stands before the first FROM are left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    stage = None
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        instruction, _, argument = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = argument.partition(" AS ")
            stage = stages[name] = Stage(name, base)
        elif instruction and stage is not None:
            stage.lines.append((instruction, argument.strip()))
    return stages


def with_bases(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those that it is built on, the lowest first."""
    stage = stages[name]
    below = with_bases(stages, stage.base) if stage.base in stages else []
    return [*below, stage]


def environment(stages: list[Stage]) -> dict[str, str]:
    """What ENV sets in these stages."""
    pairs = [re.findall(r"(\w+)=(\S+)", argument) for stage in stages for argument in stage.arguments("ENV")]
    return dict(pair for found in pairs for pair in found)


def dashboard_queries() -> list[tuple[str, str]]:
    """(panel, PromQL) of every target of every dashboard, variables put in as Grafana does."""
    found = []
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            found += [(panel["title"], _filled(target["expr"])) for target in panel.get("targets", [])]
    return found


def rules() -> list[dict[str, Any]]:
    """All alert rules."""
    groups = read_yaml(DEPLOY / "prometheus" / "alerts.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def asked_of(query: str) -> Iterator[tuple[str, set[str]]]:
    """PromQL -> each metric that it reads, with the labels that it selects and all labels that the query groups by."""
    bare = re.sub(r'"[^"]*"', '""', query)
    grouped = {name for inside in re.findall(r"\bby\s*\(([^)]*)\)", bare) for name in re.findall(r"\w+", inside)}
    bare = re.sub(r"\[[^\]]*\]", "", re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", bare))
    for name, selected in re.findall(r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?(?!\w|\s*\()", _outside(bare)):
        if name not in WORDS:
            yield name, grouped | set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selected))


def _outside(query: str) -> str:
    """Without names of functions."""
    return re.sub(r"[a-zA-Z_]\w*\s*\(", "(", query)


def _filled(query: str) -> str:
    return query.replace("$__rate_interval", "1m").replace("$instance", ".*")
