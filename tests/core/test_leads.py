"""Leads: what opened places name in turn is opened too, link by link, and nothing else is followed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.leads import find_leads
from mc_core.focus.lexical import LexicalIndex
from mc_core.lab.controller import MCController
from mc_core.models.decoder import Decoder
from mc_core.session.session import Session

BUNDLED = Path(__file__).parents[2] / "models" / "megacontext-tiny"
CHAIN = (
    "Clara Nelson shares a room with Michael Miller.",
    "Michael Miller shares a room with Victor Webb.",
    "Victor Webb shares a room with Helen Frost.",
    "Helen Frost lives in room 4711.",
)
QUESTION = "In which room does Clara Nelson live?"
COLORS = ("violet", "teal", "amber", "orange", "crimson", "blue", "pink", "brown")
COMMON = ("the", "and", "of", "to", "it", "was", "that", "had", "with", "for", "on", "they", "went", "again", "down")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The bundled model's tokenizer and words, with a base of one layer: what it computes decides nothing here."""
    bundle = load_bundle(BUNDLED)
    return replace(bundle, decoder=Decoder(replace(bundle.decoder.config, num_layers=1)).eval())


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
    tokenizer, index = bundle.tokenizer, LexicalIndex(32, bundle.words)
    ids, places = history(bundle, [0, 1, 2, 3])
    blocks = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    index.append(0, blocks)
    first = np.arange(places[0][0] // 32 - 1, (places[0][1] - 1) // 32 + 2)
    question = tokenizer.encode(QUESTION)
    leads = find_leads(index, bundle.words.ends, question, [], first, blocks[first])
    named = [tokenizer.decode(lead.terms[lead.terms >= 0]).lower() for lead in leads]
    assert any("miller" in name and "nelson" not in name for name in named)
    assert all("miller" in name for name in named)
    assert {lead.hop for lead in leads} == {0}
    assert find_leads(index, bundle.words.ends, question, leads, first, blocks[first]) == []


def test_no_lead_where_nothing_rare_was_found(bundle: Bundle) -> None:
    """Common words lead nowhere: a refocus of talk ends where it would without hops."""
    index = LexicalIndex(32, bundle.words)
    ids = bundle.tokenizer.encode(talk(np.random.default_rng(1), 400))
    blocks = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    index.append(0, blocks)
    shown = np.arange(8)
    question = bundle.tokenizer.encode("And it was for them?")
    assert find_leads(index, bundle.words.ends, question, [], shown, blocks[shown]) == []


def test_of_all_that_is_said_of_a_name_what_was_asked_for_is_opened(bundle: Bundle) -> None:
    """A lead's name may stand in many places: the one that also holds the question's words is the one to open."""
    rng = np.random.default_rng(2)
    trait, number = "We know that Clara Nelson works as a tailor.", "The locker code of Clara Nelson is 4711."
    others = [f"We know that Clara Nelson {what}." for what in ("owns two cars", "eats plums", "sings at dawn")]
    ids, places = list[NDArray[np.int32]](), dict[str, int]()
    for said in (number, trait, *others):
        text = bundle.tokenizer.encode(f"{talk(rng, 120)} ")
        places[said] = sum(map(len, ids)) + len(text)
        ids += [text, bundle.tokenizer.encode(f"{said} ")]
    question = bundle.tokenizer.encode("\nWhat is the locker code of the person who works as a tailor?\n")
    controller = MCController(bundle, FocusConfig(lens="lexical", hops=0))
    controller.begin_inference_session(np.concatenate([*ids, bundle.tokenizer.encode(talk(rng, 80))]))
    controller.inference_step(question)
    assert controller.session is not None
    leads = controller.session.leads(question, [])
    named = [lead.targets[0] for lead in leads if places[trait] // 32 in lead.blocks and len(lead.targets)]
    assert named
    assert set(named) == {places[number] // 32}


def named_by_leads(bundle: Bundle, said: list[str], question: str) -> tuple[list[set[int]], list[int]]:
    """Blocks around the place that each lead of the first hop names, and the block in which each statement begins."""
    rng = np.random.default_rng(6)
    ids, places = list[NDArray[np.int32]](), list[int]()
    for text in said:
        ids.append(bundle.tokenizer.encode(talk(rng, 120)))
        places.append(sum(map(len, ids)) // 32)
        ids.append(bundle.tokenizer.encode(f" {text}"))
    controller = MCController(bundle, FocusConfig(lens="lexical", hops=0))
    controller.begin_inference_session(np.concatenate([*ids, bundle.tokenizer.encode(talk(rng, 80))]))
    controller.inference_step(bundle.tokenizer.encode(f"\n{question}\n"))
    assert controller.session is not None
    leads = controller.session.leads(bundle.tokenizer.encode(f"\n{question}\n"), [])
    best = [lead.targets[lead.worth == lead.worth.max()] for lead in leads if len(lead.targets)]
    return [set(np.concatenate([targets, targets + 1, targets - 1]).tolist()) for targets in best], places


def test_a_number_leads_on_though_its_sentence_began_with_other_words(bundle: Bundle) -> None:
    """What a variable is set to is looked for, not the prose that its statement was pasted into, however rare it is."""
    prose = (
        "Marble staircases beneath Byzantine mosaics shimmered while heralds proclaimed the emperor's triumph over"
        " Carpathian horsemen at"
    )
    digits = " ".join(f"It was U{number} and M{number}." for number in range(100, 1000, 3))
    said = [f"{prose} VAR U729 = VAR M996.", f"{prose} Ravenna.", "VAR M996 = 57307.", "VAR J112 = 80912.", digits]
    named, places = named_by_leads(bundle, said, "What is U729?")
    assert any(places[2] in blocks for blocks in named)


def test_what_a_found_statement_answers_is_not_looked_for_again(bundle: Bundle) -> None:
    """Who likes green is known once it was found: others that like a colour are not what the name's number leads to."""
    others = ("Martha", "Jane", "David", "Sophia", "Philip", "Agnes", "Simon", "Lily")
    said = ["Thomas Butler likes the color green.", "The phone number of Thomas Butler is 62725."]
    said += [f"{name} Butler likes the color {color}." for name, color in zip(others, COLORS, strict=True)]
    said += [f"The phone number of {name} Butler is {3 * number}." for number, name in enumerate(others, 12_345)]
    said += [
        f"Thomas {name} has been here." for name in ("Reed", "Webb", "Cole", "King", "Hill", "Hunt", "Bell", "Frost")
    ]
    named, places = named_by_leads(bundle, said, "Tell me the phone number of the person who likes the color green.")
    mine = [blocks for blocks in named if places[1] in blocks]
    assert mine
    looks_alike = [blocks for blocks in named if blocks & set(places[2 : 2 + len(others)])]
    assert len(looks_alike) < len(mine)


@pytest.mark.parametrize(
    ("first", "second"),
    [("The locker code of Clara Nelson is", " now 4711."), ("As he said,", " 4711 is Clara Nelson's locker code.")],
)
def test_a_statement_that_a_border_cuts_is_opened_whole(bundle: Bundle, first: str, second: str) -> None:
    """The first hop opens the part of a found statement that no word of the question stands in, on either side."""
    rng = np.random.default_rng(3)
    parts = [bundle.tokenizer.encode(part) for part in (first, second)]
    said, inside = np.concatenate(parts), len(parts[0])
    question = bundle.tokenizer.encode("\nWhat is the locker code of Clara Nelson?\n")
    before = bundle.tokenizer.encode(talk(rng, 300))[: 64 * 32 - inside]
    ids = np.concatenate([before, said, bundle.tokenizer.encode(talk(rng, 300))])
    for hops in (0, 1):
        controller = MCController(bundle, FocusConfig(lens="lexical", hops=hops, neighbours=0))
        controller.begin_inference_session(ids)
        controller.inference_step(question)
        assert controller.session is not None
        raw = np.isin([63, 64], controller.session.raw_blocks())
        assert raw.any()
        assert raw.all() == bool(hops)


def test_a_followed_place_is_not_named_again(bundle: Bundle) -> None:
    """A lead names another place than its own, though the question's words stand there and its name right behind."""
    rng = np.random.default_rng(4)
    trait, where = (
        "The violet car that Simon drives on Sundays belongs to Clara Nelson.",
        "Clara Nelson lives in Madrid.",
    )
    ids, places = list[NDArray[np.int32]](), list[int]()
    for said in (trait, where):
        count = sum(map(len, ids)) + 3000
        ids.append(bundle.tokenizer.encode(talk(rng, 400))[: 3000 - count % 32])
        places.append(sum(map(len, ids)) // 32)
        ids.append(bundle.tokenizer.encode(f" {said}"))
        if said == trait:
            # The next block holds a part of the name again.
            ids.append(bundle.tokenizer.encode(talk(rng, 20))[: 36 - len(ids[-1])])
            ids.append(bundle.tokenizer.encode(" Clara went again."))
    question = bundle.tokenizer.encode("\nWhere is the owner of the violet car that Simon drives on Sundays?\n")
    controller = MCController(bundle, FocusConfig(lens="lexical", hops=0, neighbours=0))
    controller.begin_inference_session(np.concatenate([*ids, bundle.tokenizer.encode(talk(rng, 80))]))
    controller.inference_step(question)
    assert controller.session is not None
    leads = controller.session.leads(question, [])
    # What a statement lacks is asked for as well, and is no place that it names.
    named = [lead.targets[~np.isin(lead.targets, lead.rest)] for lead in leads]
    assert {int(targets[0]) for targets in named if len(targets)} == {places[1]}


def test_a_share_of_other_evidence_is_added_where_both_have_some() -> None:
    """Evidence with a share of another's keeps its blocks and adds the other's scores to them, and to no others."""
    rng = np.random.default_rng(5)
    index = LexicalIndex(16)
    index.append(0, rng.integers(0, 300, (400, 16)).astype(np.int32))
    mine, other = (index.evidence(rng.integers(0, 300, 12).astype(np.int32)) for _ in range(2))
    both = mine.with_share(other, 0.5)
    np.testing.assert_array_equal(both.blocks, mine.blocks)
    np.testing.assert_allclose(both.own, mine.own + 0.5 * other.own_of(mine.blocks))
    by_block = dict(zip(other.blocks.tolist(), other.ahead.tolist(), strict=True))
    added = np.array([by_block.get(block, 0.0) for block in mine.blocks.tolist()])
    np.testing.assert_allclose(both.ahead, mine.ahead + 0.5 * added, rtol=1e-5)


def test_links_stand_because_leads_named_them(bundle: Bundle) -> None:
    """What the question finds was asked for; each link that a hop opened stands as a lead."""
    session, places = asked(bundle, 3, [0, 1, 2, 3])
    why = {int(i): r for i, r in zip(session.wc.indices, session.refocuser.reasons_of(session.wc), strict=True) if r}
    told = [{why[block] for block in range(start // 32, (end - 1) // 32 + 1)} for start, end in places]
    assert "asked" in told[0]
    assert all("lead" in reasons for reasons in told[1:3])
