"""Streaming text: whole characters only, the same text as decoding at once, and stop strings never shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.models.detokenize import Detokenizer, StopMatcher
from mc_core.models.tokenizer import Tokenizer
from tiny_tokenizers import KINDS, TEXT, write


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: Tokenizer.load(write(root / kind, kind)) for kind in KINDS}


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    parts = [detokenizer.push(token) for token in ids]
    return [*parts, detokenizer.flush()]


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=30) | st.sampled_from(TEXT))
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_add_up_and_no_character_is_split(tokenizers, kind, text):
    """Concatenated parts equal decoding at once; no part shows a broken character."""
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text).tolist()
    parts = stream(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def test_a_character_of_several_tokens_comes_with_its_last(tokenizers):
    """An emoji of four byte tokens is shown once, at the fourth."""
    ids = [int(tokenizers["byte_level"].encode(t)[0]) for t in "ab"]
    tokenizer = tokenizers["sentencepiece"]
    emoji = tokenizer.encode("🙂").tolist()[-4:]
    assert stream(tokenizer, emoji) == ["", "", "", "🙂", ""]
    assert stream(tokenizers["byte_level"], ids) == ["a", "b", ""]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 419), max_size=40))
def test_any_tokens_of_a_byte_level_model_stream_as_they_decode(tokenizers, ids):
    """Broken UTF-8 from an untrained model comes out as the tokenizer itself decodes it, and is never held for long."""
    tokenizer = tokenizers["byte_level"]
    detokenizer = Detokenizer(tokenizer)
    shown = ""
    for n, token in enumerate(ids, 1):
        shown += detokenizer.push(token)
        whole = tokenizer.decode(ids[:n])
        assert whole.startswith(shown)
        assert len(whole) - len(shown) <= 3
    assert shown + detokenizer.flush() == tokenizer.decode(ids)


def test_flush_shows_what_never_became_whole(tokenizers):
    """A reply cut inside a character ends with U+FFFD instead of losing bytes in silence."""
    tokenizer = tokenizers["sentencepiece"]
    assert stream(tokenizer, tokenizer.encode("🙂").tolist()[-4:-1]) == ["", "", "", "\ufffd"]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_left_out(tokenizers, kind):
    """Control tokens of the model are not text."""
    tokenizer = tokenizers[kind]
    ids = [*tokenizer.encode("fox").tolist(), *tokenizer.encode_control("<|im_end|>").tolist()[-1:]]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids[:-1])


def brute_force(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character; the first stop string that is complete ends it."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
    st.lists(st.integers(0, 4), max_size=30),
)
def test_stop_strings_however_the_text_is_cut(text, stops, sizes):
    """Text before the stop is shown whole, nothing of it after, for every way to cut the text into parts."""
    matcher, shown, at, hit = StopMatcher(stops), "", 0, False
    for size in [*sizes, len(text)]:
        part, hit = matcher.push(text[at : at + size])
        at += size
        shown += part
        if hit:
            break
    shown += "" if hit else matcher.flush()
    assert (shown, hit) == brute_force(text, stops)


def test_only_what_could_become_a_stop_is_held_back():
    """Held text is the longest ending that begins a stop string, no more."""
    matcher = StopMatcher(["\n\nUser:", "END"])
    assert matcher.push("Hello E") == ("Hello ", False)
    assert matcher.push("N") == ("", False)
    assert matcher.push("ough\n") == ("ENough", False)
    assert matcher.push("\nUser") == ("", False)
    assert matcher.push(": hi") == ("", True)
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""
