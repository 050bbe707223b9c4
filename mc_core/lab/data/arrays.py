"""Types of arrays and places that the lab speaks of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
"""Token ids as corpora and sessions hold them."""
Ints = NDArray[np.int64]
"""Numbers to compute with: token ids that samples are made of, offsets, counts."""
Range = tuple[int, int]
"""First token and one past the last."""
