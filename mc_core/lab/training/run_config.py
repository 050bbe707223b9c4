"""Settings that every training run has, whatever it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from mc_core.errors import ConfigError
from mc_core.lab.training.schedule import rate_at

PATHS = ("data", "out", "model", "tokenizer")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class RunConfig(ABC):
    """data: a folder of .jsonl or .jsonl.xz files; out: the run's folder, which is resumed if it holds a run.

    mix: shares of the corpus files by name relative to ``data`` (default: by square root of size). warmup_steps, decay,
    floor: see ``rate_at``. clip: longest gradient. workers: processes that make batches ahead, 0 = this one makes them.
    """

    FIXED: ClassVar[tuple[str, ...]]
    """What a resumed run may not change; rates, weights and amounts may."""

    data: Path
    out: Path
    mix: dict[str, float] | None = None
    warmup_steps: int = 40
    decay: float = 0.6
    floor: float = 0.02
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    workers: int = 0
    checkpoint_minutes: float = 5.0
    log_steps: int = 20

    def __post_init__(self) -> None:
        self.check_positive("clip", "checkpoint_minutes", "log_steps")
        self.check_least(0, "workers")
        self.check_shares("decay", "floor")

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of the whole run."""

    @property
    def checkpoints(self) -> Path:
        """Where the run's state lies."""
        return self.out / "checkpoints"

    def rate_at(self, step: int) -> float:
        """Share of the full rate at ``step``, from 0."""
        return rate_at(step, self.steps, self.warmup_steps, self.decay, self.floor)

    def summary(self) -> dict[str, Any]:
        """JSON-able settings, without this machine's paths."""
        return {key: value for key, value in asdict(self).items() if key not in PATHS}

    def check_resumes(self, saved: dict[str, Any]) -> None:
        """ConfigError if a run with these settings cannot go on from one with ``saved`` (a ``summary``)."""
        now = self.summary()
        for name in self.FIXED:
            if now[name] != saved.get(name):
                raise ConfigError(f"{name} cannot change when a run is resumed: {saved.get(name)} -> {now[name]}")

    def check_positive(self, *names: str) -> None:
        """ConfigError names the first field that is not above 0."""
        for name in names:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")

    def check_least(self, least: int, *names: str) -> None:
        """ConfigError names the first field below ``least``."""
        for name in names:
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def check_shares(self, *names: str) -> None:
        """ConfigError names the first field outside of [0, 1]."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class DecoderRunConfig(RunConfig):
    """Of a run that trains, or runs, a base's layers.

    muon_rate is for the layers' matrices, adam_rate for embeddings and norms; weight_decay: of the matrices.
    batch_tokens: tokens of a batch of the base's own training, about. precision: "float32", "bfloat16" (autocast; fast
    on GPUs and on CPUs with bfloat16 units, slow on others), or "auto" (bfloat16 on CUDA alone); compile: compile the
    decoder's layers.
    """

    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    weight_decay: float = 0.01
    batch_tokens: int = 4096
    precision: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("muon_rate", "adam_rate", "batch_tokens")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be auto, float32 or bfloat16, got {self.precision!r}")

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        auto = torch.bfloat16 if self.device.startswith("cuda") else torch.float32
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(self.precision, auto)

    def autocast(self) -> torch.autocast:
        """The context to compute losses in."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)
