#!/bin/sh
# torch 2.13.0 (CPU wheel, its own libgomp): a model that was loaded, or has computed once, in one thread and serves from
# another pays for it in every small operator. Each thread that computes gets a team of OpenMP threads, which stays as long
# as that thread lives; as soon as all teams together have more threads than there are cores, waiting members go to sleep at
# once instead of spinning a little, and every operator wakes them through the kernel. torch.set_num_threads does not help,
# nor does OMP_WAIT_POLICY=active. A model of 135 M parameters in int8 on two idle cores: 29 ms a token, and 41 ms once the
# main thread had computed anything. To load and warm up in a thread that ends avoids it: its team ends with it.
# Counted here, since times depend on the machine: context switches of 2,000 small operators in a second thread. Fails if
# that changes. Needs two cores or more. Seen on Python 3.11.
#
# What it printed:
#   the first thread that computes: 3 switches
#   after another thread computed once: 3999 switches
#   after another thread computed once and ended: 6 switches
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$folder/count.py" <<'PY'
import resource
import sys
import threading

import torch

x, y = torch.randn(100_000), torch.empty(100_000)


def compute(found):
    for count in (200, 2000):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        for _ in range(count):
            torch.abs(x, out=y)
        found[:] = [resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before]


def in_thread(found):
    thread = threading.Thread(target=compute, args=(found,))
    thread.start()
    thread.join()


found = []
if sys.argv[1] == "stays":
    compute([])
if sys.argv[1] == "ends":
    in_thread([])
in_thread(found)
print(found[0])
PY
alone=$("$folder/venv/bin/python" "$folder/count.py" first)
beside=$("$folder/venv/bin/python" "$folder/count.py" stays)
ended=$("$folder/venv/bin/python" "$folder/count.py" ends)
echo "the first thread that computes: $alone switches"
echo "after another thread computed once: $beside switches"
echo "after another thread computed once and ended: $ended switches"
[ "$beside" -ge 1500 ] && [ "$alone" -lt 500 ] && [ "$ended" -lt 500 ]
