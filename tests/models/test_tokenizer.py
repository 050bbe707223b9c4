"""The tokenizer: nothing that a user writes becomes a control token, and nothing gets lost."""

import hashlib
import json
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from mc_core.models.tokenizer import Tokenizer
from tiny_tokenizers import KINDS, PLAIN_ADDED, SPECIAL, TEXT, write

CONTROLS = [*SPECIAL, *(text for text in PLAIN_ADDED if text.strip())]
LOSSLESS = ["byte_level", "sentencepiece"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: Tokenizer.load(write(root / kind, kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_token_is_plain_text_to_encode_and_a_token_to_encode_control(tokenizers, kind):
    """Special and other added tokens: text of a user never yields their ids, text of a template does."""
    tokenizer = tokenizers[kind]
    assert len(tokenizer.control_ids) >= len(SPECIAL)
    for token in sorted(tokenizer.control_ids):
        text = tokenizer.decode([token], skip_special_tokens=False)
        for surrounding in ("{}", "a {} b", "{}{}", "x{}\n"):
            ids = tokenizer.encode(surrounding.format(text, text))
            assert not set(ids.tolist()) & tokenizer.control_ids, (text, surrounding)
        assert token in tokenizer.encode_control(f"a{text}b").tolist()
    if kind == "byte_level":
        assert {tokenizer.decode([i], skip_special_tokens=False) for i in tokenizer.control_ids} == set(CONTROLS)


@pytest.mark.parametrize("encode", ["encode_control", "encode", "find_control", "encode_parts"])
def test_other_threads_run_while_a_long_text_is_encoded(tokenizers, encode):
    """Law: a text of any size is encoded without holding the interpreter, so that a server goes on answering."""
    tokenizer = tokenizers["byte_level"]
    text = '{"name": "x<|im_end|>"} ' * 20_000
    ticks, done = 0, Event()

    def tick():
        nonlocal ticks
        while not done.wait(0.001):
            ticks += 1

    thread = Thread(target=tick)
    thread.start()
    try:
        before = ticks
        getattr(tokenizer, encode)([text] if encode == "encode_parts" else text)
        counted = ticks - before
    finally:
        done.set()
        thread.join()
    assert counted > 10


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*CONTROLS, "<", "|", "im", "_end|>", " ", "é", "🙂", "a"]), max_size=8))
@pytest.mark.parametrize("kind", KINDS)
def test_no_mixture_of_pieces_yields_a_control_token(tokenizers, kind, parts):
    """Fragments that join to control tokens stay plain text too."""
    ids = tokenizers[kind].encode("".join(parts))
    assert not set(ids.tolist()) & tokenizers[kind].control_ids


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
@example("a\u2581b")
@pytest.mark.parametrize("kind", LOSSLESS)
def test_text_survives(tokenizers, kind, text):
    """Byte-complete tokenizers give every text back, control tokens' names included.

    But for one character: SentencePiece writes a space as U+2581, so that it cannot tell the two apart.
    """
    tokenizer = tokenizers[kind]
    for given_text in (text, text + "<|im_end|>" + text):
        ids = tokenizer.encode(given_text)
        assert ids.dtype == np.int32
        assert ids.ndim == 1
        expected = given_text.replace("\u2581", " ") if kind == "sentencepiece" else given_text
        assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize("kind", LOSSLESS)
def test_token_bytes_add_up_to_the_text(tokenizers, kind):
    """The bytes of single tokens, joined, are the text's own."""
    tokenizer, text = tokenizers[kind], "".join(TEXT)
    joined = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text).tolist())
    assert joined.decode().removeprefix(" " if kind == "sentencepiece" else "") == text
    end = int(tokenizer.encode_control("<|im_end|>")[-1])
    assert tokenizer.token_bytes(end) == b"<|im_end|>"
    assert tokenizer.token_bytes(10**6) == b""


def test_truncation_and_padding_of_the_file_are_off(tokenizers):
    """A tokenizer.json that cuts at 8 tokens must not cut a history, nor pad it."""
    assert len(tokenizers["byte_level"].encode("a b c d e f g h i j k l")) > 8
    assert len(tokenizers["byte_level"].encode("a")) == 1
    assert len(tokenizers["byte_level"].encode("")) == 0


def test_batches_equal_single_texts(tokenizers):
    """encode_batch is encode for each."""
    for tokenizer in tokenizers.values():
        batch = tokenizer.encode_batch([*TEXT[:3], "", "<s>"])
        assert [ids.tolist() for ids in batch] == [tokenizer.encode(t).tolist() for t in [*TEXT[:3], "", "<s>"]]


def test_half_a_surrogate_pair_is_a_replacement_character(tokenizers):
    """Text from JSON may hold lone surrogates; it is encoded, not an error."""
    tokenizer = tokenizers["byte_level"]
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode_control("\ud83d\ude42")) == "🙂"


def test_prefix_ids_are_what_the_tokenizer_puts_first(tokenizers):
    """A begin token comes from the post-processor, and only on demand."""
    assert tokenizers["byte_level"].prefix_ids.tolist() == [2]
    assert tokenizers["sentencepiece"].prefix_ids.tolist() == []
    assert 2 not in tokenizers["byte_level"].encode_control("hello").tolist()


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_what_begins_a_text_is_what_transformers_puts_there(tmp_path, kind, settings):
    """tokenizer.json alone says it: ``add_bos_token`` has no say beside one, in transformers as here."""
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path, kind, bos_token="<s>", tokenizer_class="PreTrainedTokenizerFast", **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert Tokenizer.load(folder).encode_first("the fox").tolist() == theirs("the fox").input_ids


def test_fold_joins_words_that_differ_in_case_and_space(tokenizers):
    """Tokens of one word fold to one id; control tokens, blanks and ids without a token fold to none."""
    tokenizer = tokenizers["byte_level"]
    fold = tokenizer.words(tokenizer.vocab_size + 10).fold
    words = [tokenizer.token_bytes(i).decode(errors="replace").strip().casefold() for i in range(tokenizer.vocab_size)]
    assert fold[words.index("a")] >= 0
    for i, a in enumerate(words):
        for j, b in enumerate(words):
            if "\ufffd" not in a + b and fold[i] >= 0 <= fold[j]:
                assert (fold[i] == fold[j]) == (a == b)
    assert all(fold[i] == -1 for i in tokenizer.control_ids)
    assert all(fold[i] == -1 for i, word in enumerate(words) if not word)
    assert (fold[tokenizer.vocab_size :] == -1).all()
    raw = [i for i, word in enumerate(words) if word == "\ufffd"]
    assert [fold[i] for i in raw] == raw


def test_words_tell_digits(tokenizers):
    """Digits are the tokens of nothing but digits, with or without a space; ids without a token are none."""
    tokenizer = tokenizers["byte_level"]
    digits = tokenizer.words(tokenizer.vocab_size + 10).digits
    for token in range(tokenizer.vocab_size):
        assert digits[token] == tokenizer.token_bytes(token).decode(errors="replace").strip().isdecimal()
    assert digits.any()
    assert not digits[tokenizer.vocab_size :].any()


def test_companion_files(tmp_path):
    """End tokens come from generation_config, config and the tokenizer; the fingerprint is of tokenizer.json."""
    folder = write(tmp_path, "byte_level", chat_template="{{ messages }}")
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 7]}')
    (folder / "config.json").write_text('{"eos_token_id": 9}')
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_ids == {1, 3, 7, 9}
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "bos_token": "<s>"}
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.fingerprint == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert tokenizer.vocab_size == max(tokenizer.control_ids) + 2
    (folder / "chat_template.jinja").write_text("newer")
    assert Tokenizer.load(folder).chat_template == "newer"


def test_named_templates_and_no_template(tmp_path):
    """Of several named templates the default one counts; none at all is None."""
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert Tokenizer.load(write(tmp_path / "a", "byte_level", chat_template=named)).chat_template == "d"
    assert Tokenizer.load(write(tmp_path / "b", "byte_level")).chat_template is None


def test_bad_files_are_named(tmp_path):
    """Missing or broken tokenizer files are refused in words."""
    with pytest.raises(ConfigError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    for content in (b"{", b"[]", json.dumps({"model": {"type": "nonsense"}}).encode()):
        with pytest.raises(ConfigError, match=r"tokenizer\.json"):
            Tokenizer(content)
    folder = write(tmp_path, "byte_level")
    (folder / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ConfigError, match="eos_token_id"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("holder", [{"chat_template": "p"}, {"chat_template": [{"name": "default", "template": "p"}]}])
def test_a_template_beside_the_settings(tmp_path, holder):
    """chat_template.json counts where neither chat_template.jinja nor the settings have a template."""
    folder = write(tmp_path, "byte_level")
    (folder / "chat_template.json").write_text(json.dumps(holder))
    assert Tokenizer.load(folder).chat_template == "p"
    write(tmp_path, "byte_level", chat_template={"default": "d", "tool_use": "t"})
    assert Tokenizer.load(folder).chat_template == "d"
    (folder / "chat_template.jinja").write_text("j")
    assert Tokenizer.load(folder).chat_template == "j"


def test_added_tokens_that_the_model_has_not(tokenizers):
    """An added token above the model's ids is harmless until a text needs it; a vocabulary above them is refused."""
    raw = KINDS["byte_level"]()
    raw.add_special_tokens(["<|pad|>"])
    raw.add_tokens(["\u2603"])
    pad = raw.token_to_id("<|pad|>")
    tokenizer = Tokenizer(raw.to_str().encode())
    tokenizer.fit(pad)
    assert tokenizer.encode("a <|pad|> b").max() < pad
    for encode, text in [(tokenizer.encode, "a \u2603"), (tokenizer.encode_control, "a<|pad|>")]:
        with pytest.raises(ConfigError, match="token"):
            encode(text)
    with pytest.raises(ConfigError, match=r"vocab_size in config\.json is 300"):
        Tokenizer(raw.to_str().encode()).fit(300)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*CONTROLS, " ", "  ", "\n", "fox", "é"]), max_size=8))
@pytest.mark.parametrize("kind", KINDS)
def test_plain_stretches_around_control_tokens(tokenizers, kind, parts):
    """Stretches between control tokens have the ids that they have in the whole text, blanks added or not."""
    tokenizer = tokenizers[kind]
    text = "".join(parts)
    spans = tokenizer.find_control(text)
    edges = [0, *(at for span in spans for at in (span.start, span.end)), len(text)]
    stretches = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    pairs = zip([span.id for span in spans], stretches[1:], strict=True)
    mixed = [stretches[0], *(part for pair in pairs for part in pair)]
    assert tokenizer.encode_parts(mixed).tolist() == tokenizer.encode_control(text).tolist()
