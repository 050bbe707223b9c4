#!/bin/sh
# safetensors 0.8.0, the numpy writer: an array that is a view with strides of its own (a transposed matrix, every second
# column) is written as if it were contiguous. The shape is right, no error is raised, the numbers are others. The torch
# writer refuses such a tensor. Fails if that changes. Seen on Python 3.11, numpy 2.4.6.
#
# What it printed:
#   a.T: stored [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], read back [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
#   a[:, ::2]: stored [[0.0, 2.0], [3.0, 5.0]], read back [[0.0, 1.0], [2.0, 3.0]]
#   np.ascontiguousarray(a.T): stored and read back alike
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
from safetensors.numpy import load, save

a = np.arange(6, dtype=np.float32).reshape(2, 3)
for name, view in (("a.T", a.T), ("a[:, ::2]", a[:, ::2])):
    back = load(save({"x": view}))["x"]
    print(f"{name}: stored {view.tolist()}, read back {back.tolist()}")
    assert back.shape == view.shape and not np.array_equal(back, view), "changed: strides are respected now"
whole = np.ascontiguousarray(a.T)
assert np.array_equal(load(save({"x": whole}))["x"], whole)
print("np.ascontiguousarray(a.T): stored and read back alike")
PY
