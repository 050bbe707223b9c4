"""How often does each lens open the gold of the memory suites? As the engine opens it at a turn's start.

Nothing is replied and no layer of the base is run: a real base takes seconds where ``megacontext eval`` takes an hour.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.data.corpus import held_out_documents
from mc_core.lab.evaluation.answers import ask_all, histories_for
from mc_core.lab.evaluation.driver import Answer
from mc_core.lab.evaluation.methods import reading_focus
from mc_core.lab.evaluation.real_text import Reader
from mc_core.lab.evaluation.statistics import wilson
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.history import History, Question, all_open
from mc_core.lab.tasks.plant import PlantPlan
from server.commands.lab.eval_prompt import prompt_of

SUITES = "passkey,needle,multikey,uuid,paraphrase"


class FocusDriver:
    """Refocuses a session on each question, and replies nothing."""

    def __init__(self, bundle: Bundle, focus: FocusConfig) -> None:
        self.bundle, self.focus, self.prompt = bundle, focus, prompt_of(bundle)

    def read(self, history: History) -> dict[str, str]:
        self._spans = history.spans
        self._reader = Reader(self.bundle, reading_focus(self.focus, ("hybrid", "lexical")), history.ids)
        return {}

    def ask(self, method: str, question: Question, max_tokens: int) -> Answer:
        started = time.perf_counter()
        raw, _ = self._reader.ask(method, self.prompt(question.asked.question)[0])
        gold = [self._spans[i] for i in question.gold]
        opened = all_open(gold, raw, self.focus.block_size) if gold else None
        return Answer("", opened, time.perf_counter() - started)


def main() -> None:
    """Prints a JSON object: by suite and length, the gold opened by each lens, with 95 % intervals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="corpus; its held-out documents are the text")
    parser.add_argument("--suites", default=SUITES)
    parser.add_argument("--lenses", default="hybrid,cross,lexical")
    parser.add_argument("--lengths", default="32768,131072")
    parser.add_argument("--trials", type=int, default=33)
    parser.add_argument("--histories", type=int, default=11)
    parser.add_argument("--seed", type=int, default=2)
    given = parser.parse_args()
    bundle = load_bundle(given.bundle)
    focus = FocusConfig(**{**bundle.focus, "block_size": bundle.block_size, "lens": "lexical"})
    filler = Filler.of_documents(held_out_documents(given.data), bundle.tokenizer)
    driver, lenses = FocusDriver(bundle, focus), given.lenses.split(",")
    found: dict[str, list[bool]] = defaultdict(list)
    for length in map(int, given.lengths.split(",")):
        plan = PlantPlan(length, tuple(given.suites.split(",")), given.trials, histories=given.histories)
        histories = histories_for([plan], bundle.tokenizer, filler, given.seed)
        rows, _ = ask_all(driver, histories, lenses, {}, 1, lambda *_: None)
        for row in rows:
            if row.gold_open is not None:
                found[f"{row.suite} {length} {row.method}"].append(row.gold_open)
    shares = {name: wilson(sum(hits), len(hits)) for name, hits in found.items()}
    print(json.dumps({name: [round(s.value, 3), round(s.low, 3), round(s.high, 3), s.n] for name, s in shares.items()}))


if __name__ == "__main__":
    main()
