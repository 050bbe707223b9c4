"""Parts of a history as text, wherever they are cut."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.models.cut_text import LONGEST, text_of_part
from mc_core.models.detokenize import Detokenizer
from mc_core.models.tokenizer import Tokenizer
from support import CONTROL, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


def part(tokenizer: Tokenizer, ids: np.ndarray, start: int, end: int) -> str:
    return text_of_part(tokenizer, ids[max(0, start - LONGEST) : start], ids[start:end], ids[end : end + LONGEST])


@settings(deadline=None, max_examples=150)
@given(
    tokens=st.lists(st.integers(3, 383), min_size=1, max_size=30),
    text=st.text(max_size=12),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_parts_join_to_the_whole(tokenizer: Tokenizer, tokens: list[int], text: str, cuts: list[int]) -> None:
    """Whatever bytes tokens are of, in whole characters or not, each character is in one part, and none is lost."""
    ids = np.concatenate([np.array(tokens, np.int32), tokenizer.encode(text), np.array(tokens[::-1], np.int32)])
    whole = Detokenizer(tokenizer)
    told = "".join(whole.push(token) for token in ids.tolist()) + whole.flush()
    borders = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    assert "".join(part(tokenizer, ids, a, b) for a, b in itertools.pairwise(borders)) == told
    assert part(tokenizer, ids, 0, len(ids)) == told


def test_a_character_is_where_it_begins(tokenizer: Tokenizer) -> None:
    """A cut inside a character gives it whole to the part before, and control tokens are written by their name."""
    ids = np.concatenate([tokenizer.encode_control(CONTROL[1]), tokenizer.encode("a🦊b")])
    fox = next(at for at, token in enumerate(ids.tolist()) if tokenizer.token_bytes(token)[:1] == b"\xf0")
    assert tokenizer.token_bytes(int(ids[fox])) != "🦊".encode()
    assert part(tokenizer, ids, 0, fox + 1) == f"{CONTROL[1]}a🦊"
    assert part(tokenizer, ids, fox + 1, len(ids)) == "b"
    assert part(tokenizer, ids, fox + 1, fox + 2) == ""
