"""Greedy decoding for evaluation: a batch of equally long prompts under one layout."""

from __future__ import annotations

import torch
from torch import Tensor

from mc_core.lab.training.base.model import BaseModel
from mc_core.models.attention import Attention, attend
from mc_core.models.rotary import rotate


class Remembering:
    """Wraps the attention over a prompt and keeps its keys and values, so that each new token sees all of them."""

    def __init__(self, model: BaseModel, prompt: Attention, length: int, more: int) -> None:
        """length: tokens of the prompt; more: how many may follow."""
        self.prompt, self.length, self.more = prompt, length, more
        self.cos, self.sin = model.rotary.table(torch.arange(length + more, device=model.decoder.device))
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.at = 0

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count = q.shape[1]
        now = (self.cos[self.at : self.at + count], self.sin[self.at : self.at + count])
        if self.at == 0:
            shape = (k.shape[0], self.length + self.more, *k.shape[2:])
            self.keys[layer], self.values[layer] = k.new_empty(shape), v.new_empty(shape)
        end = self.at + count
        self.keys[layer][:, self.at : end], self.values[layer][:, self.at : end] = rotate(k, now), v
        if self.at == 0:
            return self.prompt(layer, q, k, v)
        return attend(rotate(q, now), self.keys[layer][:, :end], self.values[layer][:, :end])


@torch.no_grad()
def greedy(
    model: BaseModel, prompts: Tensor, tail_start: int, segment: int, block_mask: bool, more: int, end: int
) -> list[list[int]]:
    """The likeliest continuation of each prompt [B, T], up to token ``end`` or ``more`` tokens; without ``end``."""
    inner = model.attention(prompts.shape[1], tail_start, segment, block_mask)
    attention = Remembering(model, inner, prompts.shape[1], more)
    ids, out = prompts, []
    ended = torch.zeros(prompts.shape[0], 1, dtype=torch.bool, device=prompts.device)
    for _ in range(more):
        hidden = model(ids, attention)[:, -1:]
        attention.at += ids.shape[1]
        ids = model.decoder.logits(hidden).argmax(-1)
        out.append(ids)
        ended |= ids == end
        if bool(ended.all()):
            break
    rows: list[list[int]] = torch.cat(out, 1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
