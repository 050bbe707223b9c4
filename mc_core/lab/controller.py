"""The research facade: one session in one process, step by step, on the same parts that the engine runs.

No thread, no store, no HTTP. A notebook feeds tokens, gets logits, and looks at what the focus did; a training loop of
one's own asks for the losses of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.bundle.bundle import Bundle
from mc_core.engine.core import EngineCore, build_core
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.reading import Reader
from mc_core.engine.refocus_job import visible_tokens
from mc_core.engine.requests import ContextReport
from mc_core.engine.runner import ModelRunner
from mc_core.engine.work import Decode, Forward, Pause, Wait, Work
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.refocuser import RefocusReport
from mc_core.kv.repair import RepairMode
from mc_core.lab.training.focus.contexts import ContextKind, ContextShape
from mc_core.lab.training.focus.focus_training import LossWeights
from mc_core.lab.training.focus.model import FocusModel
from mc_core.lab.training.focus.passages import passage_of
from mc_core.lab.training.focus.process import BatchProcessor, FocusLosses
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session

T = TypeVar("T")


@dataclass(frozen=True)
class InferenceStep:
    """logits [vocab_size] float32 of the next token; ``report`` of the refocus of this step, if there was one."""

    logits: Tensor
    report: RefocusReport | None
    context: ContextReport


class MCController:
    """Begin a session with a prompt of any length, then feed tokens one or many at a time."""

    def __init__(
        self,
        bundle: Bundle,
        focus: FocusConfig | None = None,
        *,
        repair: RepairMode | None = None,
        positions: str | None = None,
        engine: EngineConfig | None = None,
    ) -> None:
        focus = focus or FocusConfig()
        engine = engine or EngineConfig(max_sessions=1)
        if engine.hot_tokens is not None:
            raise ConfigError("hot_tokens needs a store; the controller keeps all ids in memory")
        self.core: EngineCore = build_core(bundle, focus, engine, None, repair=repair, positions=positions)
        self._factory = SessionFactory(bundle, focus)
        self.session: Session | None = None
        self._reader: Reader | None = None

    @torch.inference_mode()
    def begin_inference_session(self, ids: NDArray[np.int32]) -> InferenceStep:
        """Start anew with a prompt [T], T >= 1, of any length: what does not fit is seen as gists."""
        if self.session is not None:
            self.session.drop_kv()
        self.session = self._factory.create("controller", "local", model="local")
        self.core.runner.seat(self.session)
        return self._read(self.session, ids)

    @torch.inference_mode()
    def inference_step(self, ids: NDArray[np.int32]) -> InferenceStep:
        """Read the next tokens [T], T >= 1: one as a token of a reply, more as the prompt of a further turn.

        As in the engine, a refocus precedes a token that begins a block which the budget's reserve cannot hold.
        """
        session, reader = self.session, self._reader
        if session is None or reader is None:
            raise ConfigError("begin_inference_session comes first")
        if len(ids) != 1:
            return self._read(session, ids)
        reader.context = ContextReport()
        hidden = drive(reader.read(int(ids[0])), self.core.runner)
        reader.flush(make_room=False)
        return self._step(session, hidden, reader.context)

    def process_batch(
        self, ids: Tensor, *, horizon: int = 64, kind: ContextKind = "mixed", weights: LossWeights | None = None
    ) -> FocusLosses:
        """Losses of a batch of histories, to mix with the base's own; gradients reach the bundle's base and GistNet.

        ids [B, T], shorter rows padded at the end with -1: the last ``horizon`` tokens of each row follow its working
        context, which is of ``kind`` (see ``sample_context``). ConfigError if a row has no history.
        """
        focus, core = self._factory.focus, self.core
        segments = core.config.segment_blocks if core.runner.mode == "block" else None
        gistnet = core.bundle.gistnet
        shape = ContextShape(focus.budget, focus.recent_tokens, focus.block_size, segments, gistnet.vectors)
        model = FocusModel(core.bundle.decoder, gistnet, core.runner.policy)
        passages = [passage_of(row, horizon) for row in ids.cpu().numpy()]
        rng, count = np.random.default_rng(focus.seed), len(passages)
        processor = BatchProcessor(model, weights or LossWeights())
        return processor.process(rng, passages, [kind] * count, [shape] * count)

    def _read(self, session: Session, ids: NDArray[np.int32]) -> InferenceStep:
        if self._reader is not None and self._reader.session is session:
            self._reader.flush(make_room=True)  # the turn before is over
        self._reader = Reader(self.core, session, ContextReport())
        hidden = drive(self._reader.begin(np.asarray(ids, np.int32)), self.core.runner)
        return self._step(session, hidden, self._reader.context)

    def _step(self, session: Session, hidden: Tensor, context: ContextReport) -> InferenceStep:
        visible_tokens(self.core, session, context)
        report = session.last_report if context.refocuses else None
        return InferenceStep(self.core.runner.logits(hidden), report, context)


def drive(job: Generator[Work, Any, T], runner: ModelRunner) -> T:
    """Run a job of the engine by itself, in the calling thread."""
    answer: Any = None
    while True:
        try:
            work = job.send(answer)
        except StopIteration as stop:
            return stop.value
        match work:
            case Decode():
                answer = runner.decode([work])[0]
            case Forward():
                answer = runner.prefill(work)
            case Wait(future, deadline):
                answer = _wait(future, deadline)
            case Pause():
                answer = None
            case _:
                raise TypeError(f"{type(work).__name__} needs the engine's thread")


def _wait(future: Any, deadline: float | None) -> bool:
    try:
        future.exception(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        return False
    return True
