"""The tokenizer and chat format that a base is trained with."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from mc_core.lab.data.chat_format import CHAT_TEMPLATE, CONTROL_TOKENS, ChatEncoder
from mc_core.lab.data.corpus import Document
from mc_core.lab.data.train_tokenizer import train_tokenizer
from mc_core.models.tokenizer import Tokenizer as ServedTokenizer


def test_any_text_round_trips(corpus):
    """Byte-level BPE loses nothing, whatever the script."""

    @settings(max_examples=60, deadline=None)
    @given(st.text())
    def check(text):
        assert corpus.tokenizer.decode(corpus.encoder.text(text), skip_special_tokens=False) == text

    check()


def test_digits_are_single_tokens(corpus):
    """Every digit is a token by itself, and the same one wherever it stands."""
    ids = corpus.encoder.text("07 1907x7")
    pieces = [corpus.tokenizer.id_to_token(i) for i in ids]
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("0719077")


def test_control_tokens_cannot_be_forged(corpus):
    """A text that spells a control token never yields its id, alone or inside a turn."""
    control = {corpus.tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
    assert control == set(range(len(CONTROL_TOKENS)))
    for token in CONTROL_TOKENS:
        assert not control & set(corpus.encoder.text(f"say {token} now"))
        turn = corpus.encoder.turn("user", f"{token}{token}")
        assert [i for i in turn if i in control] == [corpus.encoder.turn_start, corpus.encoder.turn_end]


def test_training_and_serving_read_a_dialogue_alike(corpus):
    """What the model is trained on is what the template renders and the served tokenizer encodes."""
    jinja2 = pytest.importorskip("jinja2")
    messages = [("system", "Be kind."), ("user", "Hello, 42!"), ("assistant", "Hi.")]
    listed = [{"role": role, "content": content} for role, content in messages]
    template = jinja2.Environment().from_string(CHAT_TEMPLATE)
    served = ServedTokenizer.load(corpus.tokenizer_dir)
    document = Document(tuple(m[1] for m in messages), tuple(m[0] for m in messages))
    trained = corpus.encoder.documents([document])[0]
    rendered = template.render(messages=listed)
    assert trained[0] == corpus.encoder.end_of_text
    assert trained[1:] == served.encode_control(rendered).tolist()
    prompt = served.encode_control(template.render(messages=listed, add_generation_prompt=True)).tolist()
    assert prompt == trained[1:] + corpus.encoder.opening("assistant")
    assert served.chat_template == CHAT_TEMPLATE
    assert served.eos_ids == {corpus.encoder.turn_end, corpus.encoder.end_of_text}


def test_transformers_reads_the_tokenizer(corpus):
    """The written folder is an ordinary Hugging Face tokenizer with a chat template."""
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(corpus.tokenizer_dir)
    text = loaded.apply_chat_template([{"role": "user", "content": "Ba ce"}], tokenize=False)
    assert text == "<|im_start|>user\nBa ce<|im_end|>\n"
    assert loaded.eos_token == "<|im_end|>"
    assert loaded("Ba 12")["input_ids"] == corpus.encoder.text("Ba 12")


def test_files_say_how_a_reply_ends(corpus):
    """generation_config.json names both tokens that end a reply."""
    saved = json.loads((corpus.tokenizer_dir / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [corpus.encoder.turn_end, corpus.encoder.end_of_text]


def test_a_vocabulary_too_small_for_bytes_is_refused(corpus, tmp_path):
    """Without room for all bytes some text could not be encoded."""
    with pytest.raises(ConfigError, match="vocab_size must be at least 272"):
        train_tokenizer(corpus.data, tmp_path, vocab_size=200)


def test_a_tokenizer_without_control_tokens_is_refused(corpus):
    """Dialogues cannot be told from text without them."""
    from tokenizers import Tokenizer, models

    with pytest.raises(ConfigError, match="lacks the control token"):
        ChatEncoder(Tokenizer(models.BPE()))
