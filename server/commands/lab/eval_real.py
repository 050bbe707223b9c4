"""``megacontext eval real``: is the evidence of questions over real text opened, and by which lens more often?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.evaluation.machine import machine
from mc_core.lab.evaluation.methods import default_lenses
from mc_core.lab.evaluation.real_report import differences_of, shares_of, to_json
from mc_core.lab.evaluation.real_text import Found, ask_real
from mc_core.lab.tasks.real_text.documents import read_texts
from mc_core.lab.tasks.real_text.histories import real_histories
from mc_core.lab.tasks.real_text.questions import load_questions
from server.commands.common import plain_errors
from server.commands.lab.eval_run import prompt_of
from server.commands.lab.eval_suites import progress
from server.commands.options import with_options
from server.settings import BUNDLED_MODEL

RESULTS = "real.json"
HELP = {
    "data": "folder of the corpus that the questions are about",
    "bundle": "folder of the model, or its GGUF file",
    "questions": "held_out (never tune on these), or tuning",
    "lenses": "lenses to compare, comma-separated; by default the bundle's learned one, alone and fused, and lexical",
    "budget": "tokens of the working context; by default the bundle's own",
    "look_ahead": "places that a lens proposes; by default the bundle's own",
    "seed": "of the intervals",
    "device": "cpu, cuda, ...",
    "out": f"folder for {RESULTS}",
}
"""Help for each option of RealConfig."""


@dataclass(frozen=True)
class RealConfig:
    """What to ask, of which model, with which lenses."""

    data: Path
    bundle: Path = BUNDLED_MODEL
    questions: str = "held_out"
    lenses: tuple[str, ...] = ()
    budget: int | None = None
    look_ahead: int | None = None
    seed: int = 0
    device: str = "cpu"
    out: Path | None = None


def real_command() -> Callable[..., None]:
    """The typer command."""
    return with_options(RealConfig, real, HELP)


def real(config: RealConfig) -> None:
    """Ask questions over held-out dialogues and chapters: is their evidence raw when the model reads the question?"""
    with plain_errors():
        questions = load_questions(config.questions)
        texts = read_texts(config.data, questions, held_out=config.questions == "held_out")
        bundle = load_bundle(config.bundle, config.device)
        lenses, focus = config.lenses or default_lenses(bundle), _focus(config, bundle)
        histories = real_histories(questions, texts, bundle.tokenizer)
        with progress() as told:
            rows = ask_real(bundle, focus, histories, lenses, prompt_of(bundle), told)
        _show(Console(width=160), rows, config.seed)
        if config.out is not None:
            about = {"bundle": bundle.name, "questions": config.questions, "focus": asdict(focus), "machine": machine()}
            config.out.mkdir(parents=True, exist_ok=True)
            found = json.dumps(to_json(rows, about, config.seed), indent=1)
            (config.out / RESULTS).write_text(found + "\n", encoding="utf-8")


def _focus(config: RealConfig, bundle: Bundle) -> FocusConfig:
    """The bundle's settings, unless others are asked for."""
    asked = {name: getattr(config, name) for name in ("budget", "look_ahead") if getattr(config, name) is not None}
    return FocusConfig(**{**bundle.manifest.focus, **asked, "block_size": bundle.block_size, "lens": "lexical"})


def _show(console: Console, rows: list[Found], seed: int) -> None:
    shares = Table("questions", "method", "n", "raw %", "interval", "opened", title="evidence raw")
    for share in shares_of(rows):
        interval = f"{100 * share.raw.low:.1f} .. {100 * share.raw.high:.1f}"
        shares.add_row(
            share.part, share.method, str(share.raw.n), f"{100 * share.raw.value:.1f}", interval, f"{share.opened:.1f}"
        )
    console.print(shares)
    paired = Table("questions", "method", "less lexical", "interval", "gained", "lost", "p", title="paired")
    for one in differences_of(rows, seed):
        interval = f"{one.less.low:+.3f} .. {one.less.high:+.3f}"
        paired.add_row(
            one.part, one.method, f"{one.less.value:+.3f}", interval, str(one.gained), str(one.lost), f"{one.p:.4f}"
        )
    console.print(paired)
