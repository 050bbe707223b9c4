"""Sources: what the texts of a history are, whatever is added to it and cut off it."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.context.sources import MOST_SOURCES, UNTITLED, About, Source, Sources

ABOUTS = (UNTITLED, About("A"), About("B"), About("A", "chat"))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(ABOUTS), st.integers(0, 20)), max_size=12))
def test_every_token_has_the_source_that_it_came_with(steps: list[tuple[int, About, int]]) -> None:
    """Texts of any length, with cuts in between: by token, as kept one by one; and as JSON tells it."""
    sources, told = Sources(), list[About]()
    for length, about, cut in steps:
        sources = sources.marked(len(told), about)
        told += [about] * length
        sources = sources.marked(len(told), UNTITLED)
        position = max(0, len(told) - cut) if cut > 10 else len(told)
        sources, told = sources.cut(position), told[:position]
        sources = Sources.of_json(json.loads(json.dumps(sources.json())))
        assert [sources.about(sources.number(token)) for token in range(len(told))] == told
        assert sources.about(sources.number(len(told))) == UNTITLED
        borders = [at for at in range(len(told)) if told[at] != (told[at - 1] if at else UNTITLED)]
        assert sources.starts(0, len(told) - 1) == borders


def test_what_is_told_is_bounded() -> None:
    """Of very many texts the oldest lose their titles, and nothing else changes."""
    sources = Sources()
    for number in range(MOST_SOURCES + 10):
        sources = sources.marked(3 * number, About(str(number)))
    assert len(sources) == MOST_SOURCES
    assert sources.about(sources.number(29)) == UNTITLED
    assert sources.about(sources.number(30)) == About("10")


def test_a_text_that_goes_on_is_one() -> None:
    """The same title behind the same title begins nothing."""
    sources = Sources([Source(0, About("A"))]).marked(7, UNTITLED).marked(7, About("A"))
    assert sources.json() == [[0, "A", "document"]]
