"""A lens that is not in the tree: what it takes to add one is a function that makes it and a line in the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_lab import FOCUS, Lab, MakeLab, random_ids
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.lens import LENSES, LensParts, LensSpec
from mc_core.focus.view import LensView, Scores, lifted, recency

AT = 219 * 32


class TextLens:
    """Opens the blocks that hold the question's text, letter by letter."""

    def __init__(self, decode: Callable[[NDArray[np.int32]], str]) -> None:
        self.decode, self.texts = decode, list[str]()

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        assert first_block == len(self.texts)
        self.texts += [self.decode(block) for block in ids]

    def rewind(self, num_blocks: int) -> None:
        del self.texts[num_blocks:]

    def score(self, view: LensView) -> Scores:
        wanted, end = self.decode(view.question), view.turn_start // view.wc.block_size
        found = np.array([i for i, text in enumerate(self.texts[:end]) if wanted in text], np.int64)
        harm = recency(view.wc)
        return lifted(view.wc, np.zeros_like(harm), harm, found, np.ones(len(found), np.float32))


def make_text_lens(parts: LensParts) -> TextLens:
    assert parts.decode is not None
    return TextLens(parts.decode)


@pytest.fixture
def focus(monkeypatch: pytest.MonkeyPatch) -> FocusConfig:
    spec = LensSpec("letters", f"{__name__}:make_text_lens", frozenset({"text"}))
    monkeypatch.setitem(LENSES, spec.name, spec)  # type: ignore[arg-type]
    return replace(FOCUS, lens=spec.name)


def opened(lab: Lab, name: str) -> bool:
    """Whether a question in the words of block ``AT // 32`` brings that block."""
    session = lab.reopen(name)
    lab.ask(session, random_ids(20_000)[AT + 8 : AT + 16], 1)
    return AT // 32 in session.raw_blocks()


def test_a_lens_of_text_needs_a_line_in_the_registry(make_lab: MakeLab, focus: FocusConfig) -> None:
    """It is named in settings, follows ingest, rewind and restart, and what it finds is opened."""
    with make_lab(focus=focus) as lab:
        session = lab.session("a", 20_000)
        assert not (session.raw_blocks() == AT // 32).any()
        lab.engine.rewind(session, 15_000).result()
        assert opened(lab, "a")
    with make_lab(focus=focus) as lab:
        assert opened(lab, "a")


def test_an_unknown_lens_is_told_which_there_are() -> None:
    """Without its line there is no such lens, and the error lists those that there are."""
    with pytest.raises(ConfigError, match=f"lens must be one of {', '.join(LENSES)}, got 'letters'"):
        replace(FOCUS, lens="letters")
