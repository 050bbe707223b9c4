"""What a reply stood on, against the slow and obvious sum of all its attention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engine_lab import FOCUS, Lab, MakeLab, Reply, random_ids
from mc_core.bundle.bundle import load_bundle
from mc_core.context.sources import About
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.provenance import MOST_PLACES, PLACE_BLOCKS, Provenance
from mc_core.engine.requests import Turn
from mc_core.focus.focus_config import FocusConfig
from mc_core.kv import slot_attention
from mc_core.kv.attention_ledger import MOST_LAYERS, measured_layers
from mc_core.kv.slot_attention import CausalAttention, DecodeAttention
from mc_core.models.rotary import rotate_wide
from mc_core.models.sampler import SamplingParams
from mc_core.session.session import Session
from support import write_model

Paid = dict[int, float]
"""By the identity of a unit."""


def ask(lab: Lab, session: Session, prompt: np.ndarray, count: int, sources: bool = True, **options: Any) -> Reply:
    reply = Reply()
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=count, **options)
    lab.engine.submit(Turn(session, prompt, sampling, reply, sources=sources))
    return reply.wait()


def told(reply: Reply) -> Provenance:
    assert reply.finished is not None, reply.error
    assert reply.finished.context.provenance is not None
    return reply.finished.context.provenance


@pytest.fixture
def summing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Session], Paid]:
    """Adds up, head by head, in float64, what each step of a session that draws a token pays each unit."""
    watched: list[Session] = []
    paid: Paid = defaultdict(float)

    def add(session: Session, query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor) -> None:
        kv = session.kv
        assert kv is not None
        groups = query.shape[0] // keys.shape[0]
        for head in range(query.shape[0]):
            row = keys[head // groups].double()
            bias = mask.expand(keys.shape[0], groups, -1)[head // groups, head % groups].double()
            weights = torch.softmax(row @ query[head].double() / row.shape[-1] ** 0.5 + bias, 0).tolist()
            for rank, slot in enumerate(kv._slot[: len(kv)].tolist()):
                paid[int(kv._identity[rank])] += weights[slot]

    decode, causal = DecodeAttention.__call__, CausalAttention.__call__

    def decodes(self: DecodeAttention, layer: int, q: Any, k: Any, v: Any) -> Any:
        result = decode(self, layer, q, k, v)
        query = rotate_wide(q, self.place)
        for session in watched:
            row = session.kv.row - self.low if session.kv is not None else -1
            places = range(len(q)) if self.rows is None else self.rows.tolist()
            for place, at in enumerate(places):
                if at == row:
                    add(session, query[place, 0], self.keys[layer][row], self.mask[row])
        return result

    def reads(self: CausalAttention, layer: int, q: Any, k: Any, v: Any) -> Any:
        result = causal(self, layer, q, k, v)
        for session in watched:
            kv = session.kv
            last = kv is not None and kv.row == self.row and kv._slot[len(kv) - 1] == self.slots[-1]
            if last and kv is not None and kv._for_reply:
                keys = self.pool.keys[layer, self.row, :, : self.width]
                length = q.shape[1]
                add(session, rotate_wide(q, self.place)[0, -1], keys, self.mask[0, :, length - 1 :: length])
        return result

    monkeypatch.setattr(slot_attention.DecodeAttention, "__call__", decodes)
    monkeypatch.setattr(slot_attention.CausalAttention, "__call__", reads)

    def watch(session: Session) -> Paid:
        watched.append(session)
        return paid

    return watch


@pytest.mark.parametrize("repair", ["block", "exact", "incremental"])
def test_shares_are_the_brute_sum(make_lab: MakeLab, summing: Callable[[Session], Paid], repair: str) -> None:
    """Over refocuses that open, close and move places, beside other turns, each place is told what all heads and
    layers of all steps paid its tokens; and all of it together is 1."""
    with make_lab(EngineConfig(max_sessions=3), repair=repair) as lab:
        session, other = lab.session("a", 3_000), lab.session("b", 500, seed=1)
        paid = summing(session)
        lab.start(other, random_ids(30, 4), 90)
        provenance = told(ask(lab, session, random_ids(40, 2), 80))
    total = sum(paid.values())
    assert total == pytest.approx(80 * 2 * 4, rel=1e-4)  # steps x layers x heads
    places = provenance.sources
    for place in places:
        brute = sum(paid.get(token, 0.0) for token in range(place.start, place.end)) / total
        assert place.share == pytest.approx(brute, rel=1e-3, abs=1e-6)
    rest = vars(provenance.rest)
    assert sum(place.share for place in places) + sum(rest.values()) == pytest.approx(1.0)
    assert rest["turn"] == pytest.approx(sum(p for unit, p in paid.items() if unit >= 3_000) / total, rel=1e-3)
    assert rest["sink"] == pytest.approx(paid[0] / total, rel=1e-3)
    assert rest["frames"] == rest["gists"] == 0.0


def test_places_are_few_ordered_and_bounded(make_lab: MakeLab) -> None:
    """The best paid come first, none overlap or are longer than a passage, and their beginnings are their text."""
    focus = FocusConfig(budget=900, recent_tokens=64, hops=0)
    with make_lab(EngineConfig(max_sessions=1), focus=focus, repair="exact") as lab:
        session = lab.session("a", 9_000)
        sources = told(ask(lab, session, random_ids(40, 2), 20)).sources
        tokens = {at for place in sources for at in range(place.start, place.end)}
        for place in sources:
            assert (
                place.text_start
                == lab.bundle.tokenizer.decode(
                    session.tree.ids(place.start, min(place.end, place.start + 160)), skip_special_tokens=False
                )[:160]
            )
    assert 1 <= len(sources) <= MOST_PLACES
    assert [place.share for place in sources] == sorted((place.share for place in sources), reverse=True)
    assert len(tokens) == sum(place.end - place.start for place in sources)
    assert max(place.end - place.start for place in sources) <= 32 * PLACE_BLOCKS
    assert max(tokens) < 9_000


def test_places_name_the_text_that_they_are_of(make_lab: MakeLab) -> None:
    """A place ends where a text does, and has its title."""
    with make_lab(EngineConfig(max_sessions=1), repair="exact") as lab:
        session = lab.session("a")
        for title, seed in (("one", 1), ("two", 2)):
            lab.engine.ingest(session, random_ids(50, seed), About(title)).result()
        lab.engine.commit(session).result()
        sources = told(ask(lab, session, random_ids(150, 3), 5)).sources
    assert {(place.start, place.end, place.title) for place in sources} == {(1, 50, "one"), (50, 100, "two")}


def test_who_does_not_ask_pays_nothing(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wish nothing is measured; with it the reply is the same, a failed turn leaves nothing behind."""
    notes: list[int] = []
    with make_lab(EngineConfig(max_sessions=2)) as lab:
        plain, asks = lab.session("a", 1_000), lab.session("b", 1_000)
        with monkeypatch.context() as patch:
            patch.setattr("mc_core.kv.attention_ledger.AttentionLedger.note", lambda *_: notes.append(1))
            quiet = ask(lab, plain, random_ids(40, 2), 40, sources=False)
        assert not notes
        assert quiet.finished is not None
        assert quiet.finished.context.provenance is None
        assert ask(lab, asks, random_ids(40, 2), 40).ids == quiet.ids
        assert asks.kv is not None
        assert asks.kv.ledger is None
        reply, handle = Reply(), None
        handle = lab.engine.submit(
            Turn(asks, random_ids(9, 3), SamplingParams(max_tokens=5_000, ignore_eos=True), reply, sources=True)
        )
        assert reply.first.wait(60)
        handle.cancel()
        reply.wait()
        lab.engine.call(lambda: None).result()
        assert asks.kv.ledger is None


def test_one_token_has_its_sources_too(make_lab: MakeLab) -> None:
    """The shortest reply was drawn from one step, which is told; a stop string that cuts it changes nothing."""
    with make_lab(EngineConfig(max_sessions=1)) as lab:
        provenance = told(ask(lab, lab.session("a", 600), random_ids(40, 2), 1))
        assert sum(p.share for p in provenance.sources) + sum(vars(provenance.rest).values()) == pytest.approx(1.0)
        assert provenance.sources


def test_a_sample_of_layers_is_near_the_sum_of_all(
    tmp_path: Any, make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a deep model eight layers are measured, spread evenly; what they tell is near what all would."""
    layers = 24
    assert measured_layers(2) == {0, 1}
    assert len(measured_layers(layers)) == MOST_LAYERS
    assert {0, layers - 1} < measured_layers(layers)
    bundle = load_bundle(write_model(tmp_path / "deep", layers=layers, block_mask=False))
    found: list[dict[tuple[int, int], float]] = []
    for measured in (measured_layers(layers), frozenset(range(layers))):
        monkeypatch.setattr("mc_core.kv.attention_ledger.measured_layers", lambda _, chosen=measured: chosen)
        with make_lab(EngineConfig(max_sessions=1), repair="exact") as lab:
            deep = Lab(bundle, lab.store, EngineConfig(max_sessions=1), FOCUS, "exact")
            name = f"deep-{len(measured)}"
            sources = told(ask(deep, deep.session(name, 3_000), random_ids(40, 2), 30)).sources
            deep.engine.stop()
            found.append({(place.start, place.end): place.share for place in sources})
    some, whole = found
    assert some.keys() == whole.keys()
    assert max(abs(some[place] - whole[place]) for place in whole) < 0.02
