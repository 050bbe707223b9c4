"""What every benchmark needs: the machine's description, an engine with its store in a scratch folder, results."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.engine.core import build_core
from mc_core.engine.engine import Engine
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.requests import Delta, Event, Failed, Finished, Turn
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.evaluation.machine import machine
from mc_core.models.sampler import SamplingParams
from mc_core.models.threads import aside
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session
from server.stores.sqlite import SqliteStore

ROOT = Path(__file__).parent.parent
BUNDLE = ROOT / "models" / "megacontext-tiny"


def resident_memory() -> int:
    """Present resident bytes of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report(name: str, rows: list[dict[str, Any]], summary: dict[str, Any], save: bool) -> None:
    """Print a table and one JSON line; keep the JSON under bench/results/ when asked to."""
    table = Table(title=name)
    for column in rows[0] if rows else []:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            *(
                f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
                for value in row.values()
            )
        )
    Console(width=160).print(table)
    result = {"name": name, "machine": machine(), "summary": summary, "rows": rows}
    line = json.dumps(result)
    if save:
        (ROOT / "bench" / "results").mkdir(exist_ok=True)
        (ROOT / "bench" / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(line)


@dataclass
class Timeline:
    """When each event of a turn came, in seconds since it was submitted; ``done`` is set with the last."""

    done: threading.Event = field(default_factory=threading.Event)
    submitted: float = field(default_factory=time.perf_counter)
    deltas: list[float] = field(default_factory=list)
    text: str = ""
    finished: Finished | None = None
    error: Exception | None = None

    def wait(self) -> Timeline:
        """Block until the turn is stored; raises what it failed with."""
        self.done.wait()
        if self.error is not None:
            raise self.error
        return self

    @property
    def gaps(self) -> list[float]:
        """Seconds between two tokens."""
        return [later - sooner for sooner, later in itertools.pairwise(self.deltas)]


class Bench:
    """An engine on a bundle, with a store in a scratch folder."""

    def __init__(self, bundle: Bundle, engine: Engine, factory: SessionFactory, store: SqliteStore) -> None:
        self.bundle, self.engine, self.factory, self.store = bundle, engine, factory, store

    def session(self, name: str, **options: Any) -> Session:
        session = self.factory.create(name, "bench", model="bench", **options)
        self.store.create(session.record()).result()
        session.fence = self.store.open(name, "bench", "bench").result().fence
        return session

    def reopen(self, session: Session) -> Session:
        """The session as the store has it; what memory had of it is gone."""
        self.engine.release(session).result()
        return self.load(session.id)

    def load(self, name: str) -> Session:
        """The same of a session that is not in memory."""
        return self.factory.load(self.store.open(name, "bench", "bench").result(), self.store)

    def read(self, session: Session, ids: NDArray[np.int32]) -> Session:
        """Ingest and commit."""
        self.engine.ingest(session, ids).result()
        self.engine.commit(session).result()
        return session

    def ask(self, session: Session, text: str, max_tokens: int, **options: Any) -> Timeline:
        """``start``, and wait until the turn is stored."""
        return self.start(session, text, max_tokens, **options).wait()

    def start(
        self,
        session: Session,
        text: str,
        max_tokens: int,
        *,
        on_first: Callable[[], Any] = lambda: None,
        sources: bool = False,
        **sampling: Any,
    ) -> Timeline:
        """One chat turn in the bundle's ChatML. on_first: called with the first delta. sources: it tells what its reply
        stood on."""
        tokenizer = self.bundle.tokenizer
        prompt = np.concatenate(
            [
                tokenizer.encode_control("<|im_start|>user\n"),
                tokenizer.encode(text),
                tokenizer.encode_control("<|im_end|>\n<|im_start|>assistant\n"),
            ]
        )
        timeline = Timeline()

        def sink(event: Event) -> None:
            match event:
                case Delta(text, _, _):
                    if not timeline.deltas:
                        on_first()
                    timeline.deltas.append(time.perf_counter() - timeline.submitted)
                    timeline.text += text
                case Finished():
                    timeline.finished = event
                    timeline.done.set()
                case Failed(error):
                    timeline.error = error
                    timeline.done.set()

        params = SamplingParams(max_tokens=max_tokens, **{"temperature": 0.0, **sampling})
        suffix = tokenizer.encode_control("<|im_end|>\n")
        self.engine.submit(Turn(session, prompt, params, sink, suffix_ids=suffix, sources=sources))
        return timeline


@contextmanager
def bench_engine(
    bundle_path: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    focus: FocusConfig | None = None,
    config: EngineConfig | None = None,
    **options: Any,
) -> Iterator[Bench]:
    """Start an engine and stop it again. Its sessions share no keys and values, for many are given the same text; nor
    are replies guessed, unless that is asked for: made-up text is easy to foretell."""
    bundle = aside(lambda: load_bundle(bundle_path, device, dtype))
    focus = focus or FocusConfig()
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "bench.sqlite")
        config = config or EngineConfig()
        own = replace(config, share_kv=False, lookup_tokens=config.lookup_tokens or 0)
        engine = Engine(build_core(bundle, focus, own, store, **options))
        engine.start()
        try:
            yield Bench(bundle, engine, SessionFactory(bundle, focus), store)
        finally:
            engine.stop()
            store.close()
