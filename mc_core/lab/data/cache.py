"""A corpus as token ids on disk, made once for each tokenizer: an array and document offsets a file and split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mc_core.errors import ConfigError
from mc_core.lab.data.arrays import Ints
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.data.corpus import HELD_OUT_IN, Document, corpus_files, read_documents
from mc_core.models.loading import read_json, write_json

FORMAT = 1
SPLITS = ("train", "held_out")
BATCH_DOCUMENTS = 256
BATCH_CHARS = 4_000_000


@dataclass(frozen=True)
class Stream:
    """One file's documents, end to end: ids [n] (mapped from disk), offsets [documents + 1] int64."""

    name: str
    ids: NDArray[np.uint16] | NDArray[np.uint32]
    offsets: Ints
    chat: bool

    def __len__(self) -> int:
        return len(self.ids)


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Identifies a vocabulary, [64 hex digits]."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def prepare_cache(
    data: Path, tokenizer: Tokenizer, cache: Path, progress: Callable[[str, int], None] | None = None
) -> None:
    """Tokenise the folder into ``cache`` unless it holds just that already; progress(file, tokens so far)."""
    files = corpus_files(data)
    wanted = {
        "format": FORMAT,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "files": [{"name": str(f.relative_to(data)), "bytes": f.stat().st_size} for f in files],
    }
    index = cache / "cache.json"
    if index.exists() and {key: read_json(index).get(key) for key in wanted} == wanted:
        return
    cache.mkdir(parents=True, exist_ok=True)
    index.unlink(missing_ok=True)
    encoder = ChatEncoder(tokenizer)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    streams = []
    for number, file in enumerate(files):
        streams += _tokenise(file, str(file.relative_to(data)), encoder, cache / f"{number:04d}", dtype, progress)
    if not any(stream["split"] == "train" for stream in streams):
        raise ConfigError(f"data: {data} has no row with a text or with messages")
    write_json(index, {**wanted, "streams": streams})


def open_cache(cache: Path, split: str) -> list[Stream]:
    """The streams of one split ("train" or "held_out")."""
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {SPLITS}, got {split!r}")
    found = [entry for entry in read_json(cache / "cache.json")["streams"] if entry["split"] == split]
    return [
        Stream(
            entry["name"],
            np.load(cache / f"{entry['file']}.ids.npy", mmap_mode="r", allow_pickle=False),
            np.load(cache / f"{entry['file']}.offsets.npy", allow_pickle=False),
            entry["chat"],
        )
        for entry in found
    ]


def held_out_streams(data: Path, tokenizer: Tokenizer) -> list[Stream]:
    """The held-out documents of a corpus folder, in memory; ConfigError if there are none."""
    encoder = ChatEncoder(tokenizer)
    streams = []
    for file in corpus_files(data):
        documents = [document for document in read_documents(file) if document.held_out]
        if documents:
            rows = encoder.documents(documents)
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            ids = np.concatenate([np.array(row, np.uint32) for row in rows])
            chat = 2 * sum(bool(document.roles) for document in documents) > len(documents)
            streams.append(Stream(str(file.relative_to(data)), ids, offsets, chat))
    if not streams:
        raise ConfigError(f"data: {data} is too small to hold out a document (one in {HELD_OUT_IN} is)")
    return streams


def _tokenise(
    file: Path,
    name: str,
    encoder: ChatEncoder,
    target: Path,
    dtype: type[np.uint16] | type[np.uint32],
    progress: Callable[[str, int], None] | None,
) -> list[dict[str, object]]:
    parts: dict[str, list[NDArray[np.uint16 | np.uint32]]] = {split: [] for split in SPLITS}
    chats = total = 0
    for batch in _batches(read_documents(file)):
        for document, ids in zip(batch, encoder.documents(batch), strict=True):
            parts[SPLITS[document.held_out]].append(np.array(ids, dtype))
            chats += bool(document.roles)
            total += len(ids)
        if progress is not None:
            progress(name, total)
    entries: list[dict[str, object]] = []
    for split, arrays in parts.items():
        if arrays:
            part = f"{target.name}.{split}"
            offsets = np.cumsum([0, *(len(a) for a in arrays)], dtype=np.int64)
            np.save(target.with_name(f"{part}.ids.npy"), np.concatenate(arrays), allow_pickle=False)
            np.save(target.with_name(f"{part}.offsets.npy"), offsets, allow_pickle=False)
            entry = {"name": name, "split": split, "file": part, "chat": 2 * chats > sum(map(len, parts.values()))}
            entries.append({**entry, "documents": len(arrays), "tokens": int(offsets[-1])})
    return entries


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Batches bounded in documents and, but for a single long one, in characters."""
    while batch := list(islice(documents, 1)):
        chars = sum(map(len, batch[0].parts))
        while len(batch) < BATCH_DOCUMENTS and chars < BATCH_CHARS and (more := next(documents, None)) is not None:
            batch.append(more)
            chars += sum(map(len, more.parts))
        yield batch
