"""Settings of a base training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mc_core.errors import ConfigError
from mc_core.lab.training.base.batches import Stage
from mc_core.lab.training.base.curriculum import CURRICULUM
from mc_core.lab.training.base.model import BaseShape
from mc_core.lab.training.run_config import DecoderRunConfig


@dataclass(frozen=True, kw_only=True)
class BaseTrainConfig(DecoderRunConfig):
    """tokenizer: a folder with a tokenizer.json to use; else one of ``vocab_size`` is trained on ``tokenizer_chars``.

    total_tokens: of the whole run. history_weight: loss weight of history tokens under the block mask.
    """

    FIXED: ClassVar[tuple[str, ...]] = ("shape", "vocab_size", "seed")

    tokenizer: Path | None = None
    vocab_size: int = 8192
    tokenizer_chars: int = 25_000_000
    shape: BaseShape = field(default_factory=BaseShape)
    stages: tuple[Stage, ...] = CURRICULUM
    total_tokens: int = 10_000_000
    history_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("vocab_size", "tokenizer_chars", "total_tokens")
        self.check_shares("history_weight")
        if not self.stages:
            raise ConfigError("stages must name at least one stage")
        longest = max(stage.length for stage in self.stages)
        if longest > self.shape.max_positions:
            raise ConfigError(f"stage length {longest} is above shape.max_positions {self.shape.max_positions}")

    @property
    def steps(self) -> int:
        return max(1, self.total_tokens // self.batch_tokens)
