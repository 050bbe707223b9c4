"""What fits is shown whole: a history within the budget is read as any other server reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine_lab import FOCUS, Lab, Reply, random_ids
from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.requests import Turn
from mc_core.errors import CancelledTurnError
from mc_core.models.attention import FullAttention
from mc_core.models.rotary import Rotary
from mc_core.models.sampler import SamplingParams
from mc_core.session.session import Session
from server.stores.sqlite import SqliteStore
from support import write_model

WHOLE = replace(FOCUS, budget=640, narrow=0.5, sure=0.3, wide=128)
"""Of what does not fit, nearly all is put away."""
ROOM = WHOLE.budget - WHOLE.refocus_interval


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(write_model(tmp_path_factory.mktemp("stock") / "tiny", block_mask=False))


@pytest.fixture
def whole(stock: Bundle, tmp_path: Path) -> Iterator[Lab]:
    store = SqliteStore(tmp_path / "lab.sqlite")
    lab = Lab(stock, store, EngineConfig(max_sessions=2), WHOLE, "incremental")
    yield lab
    lab.engine.stop()
    store.close()


def logprobs(bundle: Bundle, ids: NDArray[np.int32]) -> torch.Tensor:
    """Of the next token behind each, by one pass of the base model alone [n, vocabulary]."""
    rotary = Rotary(bundle.decoder.config)
    with torch.no_grad():
        x = bundle.decoder.embed(torch.from_numpy(ids.astype(np.int64))[None])
        hidden = bundle.decoder(x, FullAttention(rotary.table(torch.arange(len(ids))[None])))
        return bundle.decoder.logits(hidden[0]).log_softmax(-1)


def ask(lab: Lab, session: Session, prompt: NDArray[np.int32], count: int, cut: int | None) -> Reply:
    """A turn; ``cut`` is where a part of the history ends that it writes anew."""
    reply = Reply()
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=count, logprobs=0)
    lab.engine.submit(Turn(session, prompt, sampling, reply, cut=cut))
    return reply.wait()


def check(lab: Lab, history: NDArray[np.int32], prompt: NDArray[np.int32], ids: list[int], told: list[float]) -> None:
    """The reply is greedy, and of the log-probabilities that the base model alone gives to it."""
    read = np.concatenate([history, prompt, np.array(ids, np.int32)])
    wanted = logprobs(lab.bundle, read)[len(history) + len(prompt) - 1 : -1]
    given = wanted[torch.arange(len(ids)), torch.tensor(ids)]
    torch.testing.assert_close(torch.tensor(told), given, atol=1e-4, rtol=0)
    assert (wanted.max(-1).values - given < 1e-4).all()


@pytest.mark.parametrize("seed", range(4))
def test_what_fits_is_read_whole(whole: Lab, seed: int) -> None:
    """Law: through turns, turns that are written anew, failures, and times when it did not fit, each reply to a history
    that fits has the log-probabilities of one plain pass over all of it."""
    rng = np.random.default_rng(seed)
    session, checked, outgrown = whole.session("a", int(rng.integers(0, 200)), seed), 0, 0
    for step in range(24):
        kind = rng.choice(["turn", "again", "cancelled", "longer", "longer", "back"])
        if kind == "longer" and session.tokens < 1_000:
            whole.engine.ingest(session, random_ids(int(rng.integers(200, 900)), seed * 100 + step)).result()
            whole.engine.commit(session).result()
        elif kind == "back" or session.tokens > 1_500:
            whole.engine.rewind(session, int(rng.integers(0, min(session.tokens, 500) + 1))).result()
        prompt, count = random_ids(int(rng.integers(1, 120)), seed * 1_000 + step), int(rng.integers(1, 70))
        if kind == "cancelled":
            reply, handle = whole.start(session, prompt, 100_000)
            assert reply.first.wait(30)
            handle.cancel()
            assert isinstance(reply.wait().error, CancelledTurnError)
            continue
        history = whole.engine.read(session, 0, session.tokens).result()
        cut = int(rng.integers(max(0, session.tokens - 200), session.tokens + 1)) if kind == "again" else None
        history = history[:cut]
        reply = ask(whole, session, prompt, count, cut)
        assert reply.error is None
        if len(history) + len(prompt) + count <= ROOM:
            assert (session.wc.levels == 0).all()
            check(whole, history, prompt, reply.ids, reply.logprobs)
            checked += 1
        else:
            outgrown += 1
    assert checked >= 3
    assert outgrown >= 3
