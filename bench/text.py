"""Text for benchmarks: a file of the user's, or prose made up on the spot, as token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mc_core.models.tokenizer import Tokenizer

NAMES = ["Anna", "the captain", "old Marlow", "the widow", "Thomas", "the governess", "Ishmael", "the vicar"]
VERBS = ["walked to", "spoke of", "remembered", "feared", "looked upon", "returned to", "wrote about", "left"]
PLACES = ["the harbour", "the cold house", "London", "the moor", "the long road", "her garden", "the ship", "the inn"]
ENDS = ["in the rain", "without a word", "as the bells rang", "for the last time", "with a heavy heart", "at dawn"]


def prose(sentences: int, seed: int = 0) -> str:
    """Plain sentences, seeded."""
    rng = np.random.default_rng(seed)
    parts = [rng.integers(len(words), size=sentences) for words in (NAMES, VERBS, PLACES, ENDS)]
    return " ".join(
        f"{NAMES[a].capitalize()} {VERBS[b]} {PLACES[c]} {ENDS[d]}." for a, b, c, d in zip(*parts, strict=True)
    )


def novel_ids(tokenizer: Tokenizer, tokens: int, path: Path | None = None, seed: int = 0) -> NDArray[np.int32]:
    """``tokens`` ids of the text in ``path`` (or of made-up prose), repeated as often as it takes."""
    text = path.read_text(encoding="utf-8") if path else prose(min(20_000, tokens // 8 + 50), seed)
    lines = [text[at : at + 65_536] for at in range(0, min(len(text), tokens * 8), 65_536)]
    ids = np.concatenate(tokenizer.encode_batch(lines))
    return np.resize(ids, tokens)
