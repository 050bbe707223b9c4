"""Leads: what opened places name in turn is opened too, link by link, and nothing else is followed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mc_core.controller import MCController
from mc_core.focus.config import FocusConfig
from mc_core.focus.leads import find_leads
from mc_core.focus.lexical import LexicalIndex
from mc_core.models.bundle import Bundle, load_bundle
from mc_core.session import Session

BUNDLED = Path(__file__).parents[2] / "models" / "megacontext-tiny"
CHAIN = (
    "Clara Nelson shares a room with Michael Miller.",
    "Michael Miller shares a room with Victor Webb.",
    "Victor Webb shares a room with Helen Frost.",
    "Helen Frost lives in room 4711.",
)
QUESTION = "In which room does Clara Nelson live?"
COMMON = ("the", "and", "of", "to", "it", "was", "that", "had", "with", "for", "on", "they", "went", "again", "down")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(BUNDLED)


def talk(rng: np.random.Generator, sentences: int) -> str:
    """Sentences of common words."""
    return " ".join(" ".join(rng.choice(COMMON, int(rng.integers(6, 14)))).capitalize() + "." for _ in range(sentences))


def history(bundle: Bundle, order: list[int]) -> tuple[NDArray[np.int32], list[tuple[int, int]]]:
    """Ids of a long text with the chain's statements in it, in this order, and where each stands."""
    rng = np.random.default_rng(0)
    parts, places, at = [], dict[int, tuple[int, int]](), 0
    for i in order:
        for text, which in ((talk(rng, 150), None), (f" {CHAIN[i]} ", i)):
            ids = bundle.tokenizer.encode(text)
            if which is not None:
                places[which] = (at, at + len(ids))
            parts.append(ids)
            at += len(ids)
    return np.concatenate([*parts, bundle.tokenizer.encode(talk(rng, 80))]), [places[i] for i in range(len(CHAIN))]


def asked(bundle: Bundle, hops: int, order: list[int]) -> tuple[Session, list[tuple[int, int]]]:
    """The session after the turn that asks for the chain's beginning, and where its statements stand."""
    ids, places = history(bundle, order)
    controller = MCController(bundle, FocusConfig(hops=hops, lens="lexical", cooldown=0))
    controller.begin_inference_session(ids)
    controller.inference_step(bundle.tokenizer.encode(f"\n{QUESTION}\n"))
    assert controller.session is not None
    controller.session.wc.check()
    return controller.session, places


def opened(bundle: Bundle, hops: int, order: list[int]) -> list[bool]:
    """Which statements of the chain stand raw then."""
    session, places = asked(bundle, hops, order)
    raw = session.raw_blocks()
    return [bool(np.isin(np.arange(start // 32, (end - 1) // 32 + 1), raw).all()) for start, end in places]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_a_chain_is_followed_link_by_link(bundle: Bundle, order: list[int]) -> None:
    """Each hop opens one link more of a chain of names, wherever its statements stand; without hops it is not."""
    for hops in range(4):
        found = opened(bundle, hops, order)
        assert found[: hops + 1] == [True] * (hops + 1)
        # The question's own words may find an end of the chain, but no link of it.
        assert hops or not all(found[:3])


def test_hops_are_parts_of_one_refocus(bundle: Bundle) -> None:
    """Hops add to what the refocus reports, by its one definition of the swap rate, and make no entry older."""
    plain, followed = (asked(bundle, hops, [0, 1, 2, 3])[0] for hops in (0, 3))
    assert plain.last_report is not None
    assert followed.last_report is not None
    assert followed.counters.refocuses == plain.counters.refocuses == 2
    assert followed.wc.residency.max() == plain.wc.residency.max() == 2
    before, after = plain.last_report, followed.last_report
    assert after.expands > before.expands
    assert after.eligible == before.eligible
    assert before.changed < after.changed <= after.eligible
    assert after.swap_rate == after.changed / after.eligible
    assert after.cost == followed.wc.cost


def test_a_statement_is_followed_once(bundle: Bundle) -> None:
    """A lead tells what its statement names, and what has been followed is no lead again."""
    tokenizer, index = bundle.tokenizer, LexicalIndex(32, bundle.fold)
    ids, places = history(bundle, [0, 1, 2, 3])
    blocks = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    index.append(0, blocks)
    first = np.arange(places[0][0] // 32 - 1, (places[0][1] - 1) // 32 + 2)
    question = tokenizer.encode(QUESTION)
    leads = find_leads(index, bundle.ends, question, [], first, blocks[first])
    named = [tokenizer.decode(lead.terms[lead.terms >= 0]).lower() for lead in leads]
    assert any("miller" in name and "nelson" not in name for name in named)
    assert all("miller" in name for name in named)
    assert {lead.hop for lead in leads} == {0}
    assert find_leads(index, bundle.ends, question, leads, first, blocks[first]) == []


def test_no_lead_where_nothing_rare_was_found(bundle: Bundle) -> None:
    """Common words lead nowhere: a refocus of talk ends where it would without hops."""
    index = LexicalIndex(32, bundle.fold)
    ids = bundle.tokenizer.encode(talk(np.random.default_rng(1), 400))
    blocks = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    index.append(0, blocks)
    shown = np.arange(8)
    assert (
        find_leads(index, bundle.ends, bundle.tokenizer.encode("And it was for them?"), [], shown, blocks[shown]) == []
    )
