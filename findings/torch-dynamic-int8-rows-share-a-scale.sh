#!/bin/sh
# torch 2.13.0, dynamic int8 (torch.ao.quantization.quantize_dynamic, engine x86): activations get one scale for the whole
# batch and not one a row, so what a row's result is depends on what else is in the batch. One loud row rounds a quiet row
# beside it to nothing: its output is 0 (of a layer without bias). For a language model that means: a token's logits change with its
# neighbours, and one outlier takes the range of all. Nothing is said. Fails if that changes. Seen on Python 3.11.
#
# What it printed:
#   quiet row alone: largest output 1.5
#   quiet row beside a loud one: largest output 0.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import torch

torch.manual_seed(0)
torch.backends.quantized.engine = "x86"
model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False)).eval()
model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
quiet, loud = torch.randn(1, 64), torch.full((1, 64), 1000.0)
alone = model(quiet)[0].abs().max().item()
beside = model(torch.cat([quiet, loud]))[0].abs().max().item()
print(f"quiet row alone: largest output {alone:.1f}")
print(f"quiet row beside a loud one: largest output {beside:.1f}")
assert alone > 0.5, "the row by itself says something"
assert beside == 0.0, "changed: rows have scales of their own"
PY
