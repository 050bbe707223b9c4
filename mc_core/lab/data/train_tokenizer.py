"""Trains the byte-level BPE tokenizer of a base: single digits, ChatML control tokens, any text round-trips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mc_core.errors import ConfigError
from mc_core.lab.data.chat_format import CHAT_TEMPLATE, CONTROL_TOKENS, END_OF_TEXT, TURN_END
from mc_core.lab.data.corpus import Document, corpus_files, read_documents
from mc_core.models.loading import write_json

SLICE_CHARS = 20_000
MIN_VOCABULARY = 256 + len(CONTROL_TOKENS)


def train_tokenizer(
    data: Path,
    out: Path,
    vocab_size: int = 8192,
    sample_chars: int = 30_000_000,
    max_length: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """Learn a vocabulary from a sample of the folder and write the tokenizer's files into ``out``.

    sample_chars: characters read, shared evenly among the files. max_length: the model's positions, told to
    other programs in tokenizer_config.json. progress is called with the characters read so far.
    """
    if vocab_size < MIN_VOCABULARY:
        raise ConfigError(f"vocab_size must be at least {MIN_VOCABULARY} (bytes and control tokens), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(corpus_files(data), sample_chars, progress), trainer)
    write_tokenizer(out, tokenizer, max_length)
    return tokenizer


def write_tokenizer(out: Path, tokenizer: Tokenizer, max_length: int) -> None:
    """tokenizer.json, tokenizer_config.json (with the chat template) and generation_config.json."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(out / "tokenizer_config.json", settings)
    write_json(out / "generation_config.json", generation_settings(tokenizer))


def generation_settings(tokenizer: Tokenizer) -> dict[str, object]:
    """Token ids that start and end a text, under the names that Hugging Face files give them."""
    end, turn_end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(TURN_END)
    return {"bos_token_id": end, "eos_token_id": [turn_end, end], "pad_token_id": end}


def _sample(files: list[Path], chars: int, progress: Callable[[int], None] | None) -> Iterator[str]:
    """Slices of documents, the files in turn, until ``chars``: no long file crowds out a short one."""
    read = 0
    for piece in chain.from_iterable(zip_longest(*(_slices(file) for file in files))):
        if piece is None:
            continue
        read += len(piece)
        if progress is not None:
            progress(read)
        yield piece
        if read >= chars:
            return


def _slices(path: Path) -> Iterator[str]:
    """About ``SLICE_CHARS`` characters at a time: the start of one text, or several dialogues."""
    held = ""
    for document in read_documents(path):
        held += _start(document)
        if len(held) >= SLICE_CHARS:
            yield held
            held = ""
    if held:
        yield held


def _start(document: Document) -> str:
    return "\n".join(document.parts)[: 3 * SLICE_CHARS] + "\n"
