"""A small corpus of its own and a tiny base, for the training tests."""

from __future__ import annotations

import json
import lzma
import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from mc_core.lab.data.cache import Stream
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.training.base.base_config import BaseTrainConfig
from mc_core.lab.training.base.batches import Stage
from mc_core.lab.training.base.model import BaseShape

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "la", "me", "ni", "ro", "su", "ta", "ve", "wi", "xo", "ya"]
TINY = BaseShape(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48)
STAGES = (
    Stage(0.5, 160, (64, 96), 0.5, 0.2, (1, 2), (3, 5)),
    Stage(0.5, 256, (64, 96), 0.4, 0.1, (1, 4), wide_segments=0.5),
)


@dataclass(frozen=True)
class Corpus:
    """Where things lie, and what was made of them."""

    data: Path
    tokenizer_dir: Path
    tokenizer: Tokenizer
    encoder: ChatEncoder
    train: list[Stream]
    held_out: list[Stream]

    def config(self, out: Path, **settings: object) -> BaseTrainConfig:
        """A run of a few seconds."""
        chosen = {"tokenizer": self.tokenizer_dir, "shape": TINY, "stages": STAGES, "batch_tokens": 512, "log_steps": 2}
        return BaseTrainConfig(data=self.data, out=out, **{**chosen, **settings})  # type: ignore[arg-type]


def sentence(rng: random.Random) -> str:
    words = ("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(rng.randint(4, 12)))
    return " ".join(words).capitalize() + "."


def write_corpus(folder: Path) -> None:
    """Texts (compressed), dialogues (plain), and a file of rows of another kind."""
    rng = random.Random(0)
    folder.mkdir()
    texts = [{"text": " ".join(sentence(rng) for _ in range(30))} for _ in range(400)]
    chats = [
        {"messages": [{"role": role, "content": sentence(rng)} for role in ("user", "assistant") * 3]}
        for _ in range(400)
    ]
    with lzma.open(folder / "texts.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in texts)
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats), encoding="utf-8")
    (folder / "traces.jsonl").write_text('{"timestamp": 1, "tokens": 2}\n', encoding="utf-8")
