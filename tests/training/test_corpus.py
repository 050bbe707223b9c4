"""Corpus folders, the split and the token cache."""

import json

import numpy as np
import pytest

from mc_core.errors import ConfigError
from mc_core.lab.data.cache import open_cache, prepare_cache
from mc_core.lab.data.corpus import Document, corpus_files, read_documents


def all_documents(folder):
    return [document for file in corpus_files(folder) for document in read_documents(file)]


def cached(streams):
    return [tuple(s.ids[a:b].tolist()) for s in streams for a, b in zip(s.offsets, s.offsets[1:], strict=False)]


def test_cache_holds_every_document_once(corpus):
    """Both splits together are the corpus, document by document, and the held-out one is disjoint from training."""
    documents = all_documents(corpus.data)
    expected = sorted(tuple(ids) for ids in corpus.encoder.documents(documents))
    train, held_out = cached(corpus.train), cached(corpus.held_out)
    assert sorted(train + held_out) == expected
    assert not set(train) & set(held_out)
    assert 0 < len(held_out) < 0.05 * len(expected)


def test_split_depends_on_content_alone(corpus):
    """A document stays in its split whatever file or order it comes in."""
    held_out = {tuple(ids) for ids in corpus.encoder.documents([d for d in all_documents(corpus.data) if d.held_out])}
    assert held_out == set(cached(corpus.held_out))


def test_streams_know_dialogues_from_texts(corpus):
    """Facts are stated in turns only among dialogues."""
    assert {stream.name: stream.chat for stream in corpus.train} == {"chats.jsonl": True, "texts.jsonl.xz": False}
    for stream in corpus.train:
        assert (stream.ids[stream.offsets[:-1]] == corpus.encoder.end_of_text).all()


def test_cache_is_made_once_and_again_when_files_change(corpus, tmp_path):
    """An unchanged folder is not tokenised twice; a changed one is."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"text": f"Ba ce {i}."} for i in range(300)]
    file = data / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = []
    for _ in range(2):
        prepare_cache(data, corpus.tokenizer, tmp_path / "cache", lambda name, tokens: told.append(name))
    passes = len(told)
    assert set(told) == {"a.jsonl"}
    before = sum(len(s) for s in open_cache(tmp_path / "cache", "train"))
    file.write_text(file.read_text() + json.dumps({"text": "Di fo gu."}) + "\n")
    prepare_cache(data, corpus.tokenizer, tmp_path / "cache", lambda name, tokens: told.append(name))
    assert len(told) == 2 * passes
    assert sum(len(s) for s in open_cache(tmp_path / "cache", "train")) > before


def test_rows_of_other_shapes_are_left_out(tmp_path):
    """A folder may hold other files; what is not a document is not guessed at."""
    rows = [{"text": "x"}, {"text": " "}, {"text": 3}, [1], {"messages": [{"role": "robot", "content": "y"}]}]
    rows += [{"messages": []}, {"messages": [{"role": "user", "content": " z "}]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert all_documents(tmp_path) == [Document(("x",)), Document(("z",), ("user",))]


def test_bad_folders_are_named(corpus, tmp_path):
    """An empty folder, one without documents and a broken line each give a message that says where."""
    with pytest.raises(ConfigError, match="holds no file"):
        corpus_files(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="no row with a text"):
        prepare_cache(tmp_path, corpus.tokenizer, tmp_path / "cache")
    (tmp_path / "a.jsonl").write_text('{}\n{"text": \n')
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 2"):
        all_documents(tmp_path)


def test_ids_fit_their_type(corpus):
    """A vocabulary below 65,536 is stored in two bytes a token."""
    assert all(stream.ids.dtype == np.uint16 for stream in corpus.train)
