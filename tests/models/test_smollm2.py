"""The real GGUF file: its ids are llama.cpp's, its logits those of transformers."""

from __future__ import annotations

import json
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from mc_core.bundle.bundle import Bundle, load_bundle, networks_for
from mc_core.focus.word_search import WordSearch
from mc_core.models.attention import FullAttention
from mc_core.models.rotary import Rotary
from server.fetch import SMOLLM2
from server.settings import BUNDLED_MODEL

LINES = json.loads((Path(__file__).parent / "smollm2_lines.json").read_text("utf-8"))
NETWORKS = BUNDLED_MODEL.parent / "smollm2-135m-instruct"
STORY = Path(__file__).parents[2] / "docs" / "examples" / "the-ferry-at-averby.txt"


@pytest.fixture(scope="module")
def bundle(smollm2: Path) -> Bundle:
    """The file, with the networks that come with the project."""
    return load_bundle(smollm2, networks=NETWORKS)


def test_ids_are_those_of_llama_cpp(bundle: Bundle) -> None:
    """Law: lines of what is hard (digits behind blanks, newlines, CJK, emoji) have the ids that llama.cpp gave them."""
    ours = [ids.tolist() for ids in bundle.tokenizer.encode_batch([line["text"] for line in LINES])]
    wrong = [(line, ids) for line, ids in zip(LINES, ours, strict=True) if ids != line["ids"]]
    assert not wrong


@torch.no_grad()
def test_logits_are_those_of_transformers(smollm2: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: over 512 tokens of prose, in float32, no logit differs from transformers' by 1e-3, reading the same file."""
    transformers = pytest.importorskip("transformers")
    # It looks up the names of all tensors anew for each part of the model, and slices a map of the file: 20 s of 24.
    monkeypatch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
    monkeypatch.setattr(gguf.GGUFReader, "data", property(attrgetter("mapped"), read_as_array), raising=False)
    tokens = torch.from_numpy(bundle.tokenizer.encode(STORY.read_text("utf-8"))[None, :512]).long()
    decoder = bundle.decoder
    rotation = Rotary(decoder.config).table(torch.arange(tokens.shape[1]))
    ours = decoder.logits(decoder(decoder.embed(tokens), FullAttention(rotation)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    expected = theirs.eval()(tokens).logits
    assert expected.std() > 1
    assert (ours - expected).abs().max() < 1e-3


def read_as_array(reader: Any, mapped: Any) -> None:
    reader.mapped = np.asarray(mapped)


def test_its_networks_are_for_just_this_file(smollm2: Path, bundle: Bundle) -> None:
    """The folder holds no base, names the fetched file, and says by its figures whether its lens is used."""
    assert {file.name for file in NETWORKS.iterdir()} == {"README.md", "bundle.json", "lensnet.safetensors"}
    assert networks_for(smollm2, sorted(BUNDLED_MODEL.parent.iterdir())) == NETWORKS
    base = bundle.manifest.base_file
    assert base is not None
    assert (base.file, base.sha256, base.size) == (SMOLLM2.file_name, SMOLLM2.sha256, SMOLLM2.size)
    assert bundle.lensnet is not None
    assert bundle.lens == ("hybrid" if bundle.manifest.passed("lensnet") else "lexical")


def test_a_word_of_the_same_meaning_is_found(bundle: Bundle) -> None:
    """Of a story's blocks the eight best by word vectors hold what answers the question in other words altogether."""
    assert bundle.lensnet is not None
    assert bundle.lensnet.word_net is not None
    search = WordSearch(bundle.lensnet.word_net, 32)
    story = bundle.tokenizer.encode(STORY.read_text("utf-8"))
    said = bundle.tokenizer.encode(" Her physician forbade wine and ordered a long rest by the sea that summer.")
    text = np.concatenate([story[:640], said, story[640:]])
    search.append(0, text[: len(text) // 32 * 32].reshape(-1, 32))
    found = search.search(bundle.tokenizer.encode("Which drink did the doctor ban?"), search.num_blocks, 8)
    assert {640 // 32 - 1, 640 // 32} & set(found.nodes.tolist())
