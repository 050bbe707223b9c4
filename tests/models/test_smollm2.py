"""The real GGUF file: its ids are llama.cpp's, its logits those of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mc_core.models.attention import FullAttention
from mc_core.models.gguf_file import GgufFile
from mc_core.models.gguf_tokenizer import load_tokenizer
from mc_core.models.loading import load_decoder
from mc_core.models.rotary import Rotary

LINES = json.loads((Path(__file__).parent / "smollm2_lines.json").read_text("utf-8"))
STORY = Path(__file__).parents[2] / "docs" / "examples" / "the-ferry-at-averby.txt"


def test_ids_are_those_of_llama_cpp(smollm2: Path) -> None:
    """Law: lines of what is hard (digits behind blanks, newlines, CJK, emoji) have the ids that llama.cpp gave them."""
    tokenizer = load_tokenizer(GgufFile(smollm2))
    ours = [ids.tolist() for ids in tokenizer.encode_batch([line["text"] for line in LINES])]
    wrong = [(line, ids) for line, ids in zip(LINES, ours, strict=True) if ids != line["ids"]]
    assert not wrong


@torch.no_grad()
def test_logits_are_those_of_transformers(smollm2: Path) -> None:
    """Law: over 512 tokens of prose, in float32, no logit differs from transformers' by 1e-3, reading the same file."""
    transformers = pytest.importorskip("transformers")
    ids = load_tokenizer(GgufFile(smollm2)).encode(STORY.read_text("utf-8"))[None, :512]
    tokens = torch.from_numpy(ids).long()
    decoder = load_decoder(smollm2)
    rotation = Rotary(decoder.config).table(torch.arange(tokens.shape[1]))
    ours = decoder.logits(decoder(decoder.embed(tokens), FullAttention(rotation)))
    del decoder
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    expected = theirs.eval()(tokens).logits
    assert expected.std() > 1
    assert (ours - expected).abs().max() < 1e-3
