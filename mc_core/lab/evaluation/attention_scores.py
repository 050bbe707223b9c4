"""What a question pays to candidate blocks: each read by itself, the question after all of them at once.

Blocks stand side by side: each sees a header and itself, and begins where the header ends, so none is nearer to the
question than another. All their keys compete in one softmax, as they do in a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.lab.data.arrays import Ids
from mc_core.models.attention import attend
from mc_core.models.decoder import Decoder
from mc_core.models.rotary import Rotary, Rotation, rotate

Floats = NDArray[np.float32]


@dataclass(eq=False)
class _Kept:
    """Keys, rotated, and values of what was read, by layer: [B, S, kv_heads, D] each."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class _Reading:
    """Attention over the header [1, F], if it was read before, and one's own tokens so far; keeps both."""

    def __init__(self, place: Rotation, header: _Kept | None) -> None:
        self.place, self.header, self.kept = place, header, _Kept()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, first = rotate(k, self.place), 0
        self.kept.keys.append(k)
        self.kept.values.append(v)
        if self.header is not None:
            seen = (self.header.keys[layer], self.header.values[layer])
            k, v = (
                torch.cat([old.expand(len(new), -1, -1, -1), new], 1) for old, new in zip(seen, (k, v), strict=True)
            )
            first = seen[0].shape[1]
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(first)
        return attend(rotate(q, self.place), k, v, mask)


class _Asking:
    """Attention of a question over header, blocks [C, S] and itself; notes what it pays each token of the blocks."""

    def __init__(self, place: Rotation, header: _Kept, blocks: _Kept) -> None:
        self.place, self.header, self.blocks = place, header, blocks
        self.paid: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, q = rotate(k, self.place), rotate(q, self.place)
        count, size = self.blocks.keys[layer].shape[:2]
        seen = [(self.header.keys[layer], self.header.values[layer])]
        seen += [(self.blocks.keys[layer].flatten(0, 1)[None], self.blocks.values[layer].flatten(0, 1)[None]), (k, v)]
        keys, values = (torch.cat([part[i] for part in seen], 1)[0].transpose(0, 1) for i in (0, 1))
        groups, length = q.shape[2] // k.shape[2], q.shape[1]
        keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
        scores = q[0].transpose(0, 1) @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
        before = keys.shape[1] - length
        seen_by = torch.ones(length, keys.shape[1], dtype=torch.bool).tril(before)
        weights = torch.softmax(scores.masked_fill(~seen_by, float("-inf")).float(), -1)
        first = self.header.keys[layer].shape[1]
        of_blocks = weights[:, :, first : first + count * size]
        self.paid.append(of_blocks.reshape(*of_blocks.shape[:2], count, size))
        return (weights.to(v.dtype) @ values).transpose(0, 1)[None]


class BlockReader:
    """header: ids [F] that all blocks see. layers: how many of the decoder's are run."""

    def __init__(self, decoder: Decoder, header: Ids, layers: int) -> None:
        self.decoder, self.layers = decoder, min(layers, decoder.config.num_layers)
        self._rotary = Rotary(decoder.config, decoder.device)
        self._start = len(header)
        self._header = self._read(header[None], 0, None)

    def read(self, blocks: Ids | Tensor) -> _Kept:
        """ids [C, S], or input embeddings [C, S, d] -> their keys and values; each block sees the header and itself."""
        return self._read(blocks, self._start, self._header)

    def in_a_row(self, blocks: Ids) -> _Kept:
        """The same for blocks that stand one behind another, each seeing all before it."""
        kept = self._read(blocks.reshape(1, -1), self._start, self._header)
        parts = [
            [each[0].reshape(*blocks.shape, *each.shape[2:]) for each in part] for part in (kept.keys, kept.values)
        ]
        return _Kept(*parts)

    def ask(self, question: Ids, blocks: _Kept, at: int) -> Floats:
        """question [T], from ``at`` behind the header on -> what its tokens pay [layers, heads, T, C, S]."""
        attention = _Asking(self._place(self._start + at, len(question)), self._header, blocks)
        self._run(question[None], attention)
        return torch.stack(attention.paid).numpy()

    def _read(self, ids: Ids | Tensor, start: int, header: _Kept | None) -> _Kept:
        attention = _Reading(self._place(start, ids.shape[1]), header)
        self._run(ids, attention)
        return attention.kept

    def _place(self, start: int, length: int) -> Rotation:
        return self._rotary.table(torch.arange(start, start + length, device=self.decoder.device))

    @torch.inference_mode()
    def _run(self, ids: Ids | Tensor, attention: _Reading | _Asking) -> None:
        decoder = self.decoder
        if not isinstance(ids, Tensor):
            ids = decoder.embed(torch.from_numpy(ids.astype(np.int64)).to(decoder.device))
        x = decoder.input_norm(ids)
        x = x if decoder.spread is None else decoder.spread(x)
        for layer in decoder.layers[: self.layers]:
            x = layer(x, attention)
