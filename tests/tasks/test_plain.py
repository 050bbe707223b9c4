"""Statements written by hand: each tells what is asked of it, in its own words, and a mistake is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from mc_core.lab.tasks.concepts import CONCEPTS
from mc_core.lab.tasks.facts import KINDS, PERSONAL
from mc_core.lab.tasks.keys import keys_of
from mc_core.lab.tasks.loose import tells
from mc_core.lab.tasks.plain import WRITTEN, chats, read_statements, statements, talk

ROW = {"statement": "Ode owes 1,250 crowns.", "question": "What does Ode owe?", "values": ["1250"], "wording": "owes"}
COMMON = frozenset(
    re.findall(
        r"\w+",
        "the a an of to in on at for and or is was were are be been by with from it its his her their my our your i we "
        "us you he she they them that this which what who whom whose how where when why did do does has have had not",
    )
)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower())) - COMMON


def test_the_held_out_set_is_large_and_varied() -> None:
    """At least 160 statements in 80 wordings, none said or asked twice."""
    found = statements("plain")
    assert len(found) >= 160
    assert len({each.wording for each in found}) >= 80
    assert len({each.statement for each in found}) == len({each.question for each in found}) == len(found)


def test_a_question_shares_a_word_and_no_phrase() -> None:
    """Every question can be found by a word of its statement, and copies no four telling words in a row."""
    for each in statements("plain"):
        assert words(each.statement) & words(each.question), each
        told, asked = (re.findall(r"[a-z0-9]+", text.lower()) for text in (each.statement, each.question))
        fours = {tuple(told[i : i + 4]) for i in range(len(told) - 3)}
        copied = fours & {tuple(asked[i : i + 4]) for i in range(len(asked) - 3)}
        assert not [run for run in copied if not set(run) & COMMON], each


def test_no_other_statement_tells_the_value() -> None:
    """What one statement tells stands in no other one, nor in any question."""
    found = statements("plain")
    for each in found:
        for value in each.values:
            assert [other.wording for other in found if tells(other.statement, value)] == [each.wording]
            assert not [other.question for other in found if other is not each and tells(other.question, value)], value


def test_nothing_is_in_the_words_of_a_generator() -> None:
    """No sentence of a statement or a chat is one that training's facts and concepts make."""
    facts = [stated for kind in (*KINDS, *PERSONAL) for stated in (*kind.stated, *kind.kept_stated)]
    templates = [*facts, *(stated for concept in CONCEPTS for stated in concept.stated)]
    pattern = re.compile("|".join(re.sub(r"\\{[kv]\\}", ".+", re.escape(text.rstrip("."))) for text in templates))
    said = [each.statement for each in statements("plain")]
    said += [told.statement.statement for chat in chats() for told in chat.told]
    for sentence in (part for text in said for part in re.split(r"(?<=[.!?;])\s", text)):
        assert pattern.fullmatch(sentence.rstrip(".")) is None, sentence


def test_an_episode_scores_its_own_statement() -> None:
    """The statement is a right answer, a blank reply none, and two statements never go by the same key."""
    keys: set[str] = set()
    for each in statements("plain"):
        episode = each.episode("plain")
        assert episode.asked[0].score(each.statement) == 1.0
        assert episode.asked[0].score("I do not know.") == 0.0
        assert not keys & keys_of(episode)
        keys |= keys_of(episode)


@pytest.mark.parametrize(
    ("reply", "value", "right"),
    [
        ("It was 20,772 pounds.", "20772", True),
        ("It was 20 772 pounds.", "20,772", False),
        ("It was 120772 pounds.", "20772", False),
        ("It was 20772.5 pounds.", "20772", False),
        ("It was 20772.", "20772", True),
        ("On the 19th.", "19", True),
        ("At 1 o'clock, 19 of them", "9", False),
        ("BREAD OVEN!", "bread oven", True),
        ("the ferns", "fern", True),
        ("the modern", "fern", False),
        ("eleven hives", "eleven|11", True),
        ("11 hives", "eleven|11", True),
        ("1,185 hives", "11", False),
        ("row Q\u2019s end", "row q's", True),
        ("at 6:40", "6.40|6:40", True),
        ("at 16.40", "6.40", False),
    ],
)
def test_what_tells_a_value(reply: str, value: str, right: bool) -> None:
    """Case and thousands separators do not matter; other numbers and ends of words are not the value."""
    assert tells(reply, value) == right


@given(number=st.integers(0, 10**9), before=st.sampled_from(["", "about ", "(", "$"]), after=st.sampled_from("., ;)"))
def test_separators_never_matter(number: int, before: str, after: str) -> None:
    """A number with and without separators tells the same, whatever stands around it."""
    for written in (str(number), f"{number:,}"):
        assert tells(f"{before}{written}{after} and more", str(number))
        assert tells(f"{before}{number}{after} and more", written)
        assert not tells(f"{before}{written}{after}", str(number + 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": []}, "values must be a list that is not blank"),
        ({"values": [" "]}, "values must be texts that are not blank"),
        ({"values": ["77"]}, "'77' is not in the statement"),
        ({"values": ["Ode"]}, "is told by the question"),
        ({"values": "1250"}, "values must be a list"),
        ({"question": 4}, "question must be a text"),
        ({"wording": " "}, "wording must be a text that is not blank"),
        ({"more": 1}, "must have the fields"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """The file, the line and the field of what is wrong."""
    file = tmp_path / "mine.jsonl"
    good = json.dumps({**ROW, "statement": "Una owes 1250.", "question": "And Una?"})
    file.write_text(good + "\n" + json.dumps({**ROW, **change}) + "\n")
    with pytest.raises(ConfigError, match=rf"mine\.jsonl, line 2: .*{message}"):
        read_statements(file)


def test_a_set_that_is_not_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite and its file are named."""
    monkeypatch.setitem(WRITTEN, "plain_other", "other.jsonl")
    with pytest.raises(ConfigError, match=r"plain_other needs other\.jsonl"):
        statements("plain_other")


def test_what_is_there_twice_or_no_json(tmp_path: Path) -> None:
    """The same statement or question twice, a broken line and an empty file are refused."""
    file = tmp_path / "mine.jsonl"
    for text, message in (
        (json.dumps(ROW) + "\n" + json.dumps(ROW), "the statement .* is there twice"),
        ("{", "line 1: not JSON"),
        ("", "holds no row"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_statements(file)


def test_the_chats_are_many_and_tell_each_thing_once() -> None:
    """At least 60 questions over 10 chats; what one turn tells stands nowhere else, replies and talk included."""
    found = chats()
    assert len(found) >= 10
    assert sum(len(chat.told) for chat in found) >= 60
    said = [text for turn in talk() for text in (turn.user, turn.assistant)]
    for chat in found:
        own = [text for told in chat.told for text in (told.turn.user, told.turn.assistant)]
        for told in chat.told:
            for value in told.statement.values:
                assert [text for text in own if tells(text, value)] == [told.turn.user], value
                assert not [other for other in chat.told if tells(other.statement.question, value)], value
                assert not [text for text in said if tells(text, value)], value


def test_what_the_user_says_holds_what_is_told(tmp_path: Path) -> None:
    """A turn's statement is a part of it; the file's rows are checked as those of statements are."""
    from mc_core.lab.tasks.plain.chats import _chat

    row = {"user": "Hi. Ode owes 5.", "assistant": "Oh.", **{name: ROW[name] for name in ("question", "values")}}
    with pytest.raises(ConfigError, match="statement must be a part"):
        _chat({"chat": "x", "told": [{**row, "statement": ROW["statement"]}]})
    with pytest.raises(ConfigError, match="told must be a list"):
        _chat({"chat": "x", "told": []})
