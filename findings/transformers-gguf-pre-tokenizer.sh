#!/bin/sh
# transformers 5.23.0 reads the tokenizer of a GGUF file (AutoTokenizer, gguf_file=..) without following the pre-tokenizer
# that tokenizer.ggml.pre names: "smollm" cuts a text at every digit, so the merge "1 2" never joins two of them in
# llama.cpp; here it does, and a name that nobody knows is taken like any other. The ids differ from the model's own, and
# nothing is said. Fails if that changes. Seen on Python 3.11, torch 2.13.0, gguf 0.19.0.
#
# What it printed:
#   smollm: ['ab', '12']
#   made-up: ['ab', '12']
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 gguf==0.19.0 torch==2.13.0
"$folder/venv/bin/python" - "$folder" <<'PY' 2>/dev/null
import sys
from pathlib import Path

import gguf
import numpy as np
from transformers import AutoTokenizer

folder = Path(sys.argv[1])
tokens = ["<end>", *map(chr, range(33, 127)), "Ġ", "12", "ab"]
for name in ("smollm", "made-up"):
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", name)
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [3, *[1] * (len(tokens) - 1)])
    writer.add_array("tokenizer.ggml.merges", ["1 2", "a b"])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 0)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    pieces = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").tokenize("ab12")
    print(f"{name}: {pieces}")
    assert pieces == ["ab", "12"], "changed: the pre-tokenizer counts now"
PY
