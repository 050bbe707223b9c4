"""Text in pieces, and text that goes on where other text ends: the tokens are those of the whole text."""

import asyncio
import functools
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import template_shapes
from mc_core.models.tokenizer import Tokenizer as Served
from server.ingest.text_pieces import LEAD, batches, encode_pieces

LLAMA3_WORDS = template_shapes.QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
STRETCHES = [
    *("It was the best", " of times,", " the keeper ", "\n", "\n\n", "\r\n\t", " ", "  ", "." * 9, "\u00a0", "\u3000"),
    *(
        " " * 40,
        "\n" * 30,
        "1234567",
        "0" * 50,
        "東京と北京市",
        "🙂🚀",
        "e\u0301\u0302",
        "naïve",
        "<|im_end|>",
        "</s>",
        "x" * 60,
    ),
]
LONG = [" " * 700, "0123456789" * 70, "東京と北京市" * 120, "x" * 700, "🙂" * 400, "\n" * 500, "the " * 200]


def gpt2():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return template_shapes.trained(tokenizer, pre_tokenizers.ByteLevel.alphabet(), [])


def llama3():
    tokenizer = gpt2()
    cutter = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cutter, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return tokenizer


def metaspace(scheme, split):
    tokenizer = template_shapes.metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>", "<|im_end|>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(template_shapes.PROSE, trainer)
    return tokenizer


KINDS = {
    "gpt2": gpt2,
    "llama3": llama3,
    "qwen": template_shapes.byte_level,
    "llama2": template_shapes.prepend,
    "metaspace_first": lambda: metaspace("first", False),
    "metaspace_always": lambda: metaspace("always", True),
    "metaspace_never": lambda: metaspace("never", False),
    "unigram": unigram,
}


@functools.cache
def made(kind):
    return Served(template_shapes.written(KINDS[kind]()))


def in_pieces(tokenizer, texts, piece, batch=3):
    async def collect():
        async def source():
            for text in texts:
                yield text

        return [found async for found in batches(source(), tokenizer, piece, batch)]

    found = asyncio.run(collect())
    assert all(1 <= len(group) <= batch for group in found)
    assert "".join(one.text for group in found for one in group) == "".join(texts)
    ids = [encode_pieces(tokenizer, group, fresh=True) for group in found]
    return found, np.concatenate(ids) if ids else np.empty(0, np.int32)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(STRETCHES) | st.text(max_size=9), max_size=60), st.lists(st.sampled_from(LONG), max_size=2)
)
@example(["It was"] * 60, [" " * 700])
@example(["1"] * 40, ["0123456789" * 70])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_tokens_of_the_whole_text(kind, stretches, long):
    """However a text comes and is cut into pieces, its ids are those of the text at once."""
    rng = random.Random(len(stretches))
    texts = [*stretches, *long]
    rng.shuffle(texts)
    _, ids = in_pieces(made(kind), texts, piece=2 * LEAD, batch=20)
    assert ids.tolist() == made(kind).encode("".join(texts)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_prose_is_cut_at_words_into_pieces_of_the_size_asked_for(kind):
    """Ordinary text is cut all the time, before a blank or a line break, and no piece is longer than asked."""
    rng = random.Random(0)
    text = "".join(rng.choice([" the", " keeper", " of", "\n", ", who", " was", " 4711"]) for _ in range(4000))
    found, ids = in_pieces(made(kind), [text[at : at + 100] for at in range(0, len(text), 100)], piece=600)
    pieces = [one for group in found for one in group]
    assert all(len(one.text) <= 600 + LEAD for one in pieces)
    assert len(pieces) > len(text) / 600
    assert all(one.text[0] in " \n" for one in pieces[1:])
    assert ids.tolist() == made(kind).encode(text).tolist()


def test_text_without_a_place_to_cut_is_bounded():
    """A run of digits, whose tokens depend on where it begins, stays whole up to the size of a list."""
    found, _ = in_pieces(made("llama3"), ["1" * 1000] * 12, piece=600, batch=5)
    sizes = [len(one.text) for group in found for one in group]
    assert max(sizes) <= 600 * 5 + LEAD
    assert len(sizes) >= 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(STRETCHES), max_size=6).map("".join), st.lists(st.sampled_from(STRETCHES)).map("".join))
@example("It was", " the best")
@example("It was", "the best")
@example("It was\n", "\nthe best")
@pytest.mark.parametrize("kind", KINDS)
def test_text_that_goes_on_has_no_blank_added(kind, before, text):
    """Where the tokens of a text have a border, its parts have the tokens that they have in the whole."""
    tokenizer = made(kind)
    head, whole = tokenizer.encode(before), tokenizer.encode(before + text)
    more = tokenizer.encode_more(text)
    if before and 0 not in whole and np.array_equal(whole[: len(head)], head):
        assert tokenizer.decode(more) == tokenizer.decode(whole[len(head) :])
        assert more.tolist() == whole[len(head) :].tolist() or not is_settled(tokenizer, before, text)
    assert not set(more.tolist()) & tokenizer.control_ids


def is_settled(tokenizer, before, text):
    """The tokens of a text do not depend on what stands before it."""
    tails = []
    for lead in (before, f"a{before}", f"\n{before}"):
        head, whole = tokenizer.encode(lead), tokenizer.encode(lead + text)
        tails.append(whole[len(head) :].tolist())
    return tails[0] == tails[1] == tails[2]
