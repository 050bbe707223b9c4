"""Settings of a focus training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mc_core.errors import ConfigError
from mc_core.lab.tasks.plant import SUITES
from mc_core.lab.training.base.batches import Stage
from mc_core.lab.training.focus.contexts import KINDS
from mc_core.lab.training.run_config import DecoderRunConfig
from mc_core.nets.gistnet import Head, Pooling

MODES = ("frozen", "adapted", "joint")
LEAST_SERVED = 2048
"""Tokens of a history in which an episode of every suite has room."""
FOREIGN = {"encoder": ("heads", "pooling", "head"), "excerpt": ("layers", "heads", "pooling", "head")}
"""Arguments of ``GistShape`` that a kind has not."""


@dataclass(frozen=True)
class GistShape:
    """The GistNet's arguments, as ``bundle.json`` keeps them: of a kind those that it has, and not that it has one
    vector, where that is its default. wide: of an encoder's MLP, or of the one that chooses excerpts."""

    kind: Literal["mean", "transformer", "encoder", "excerpt"] = "mean"
    layers: int = 2
    heads: int = 4
    pooling: Pooling = "query"
    head: Head = "mlp"
    vectors: int = 1
    wide: int = 1024

    def arguments(self) -> dict[str, Any]:
        """For ``make_gistnet``."""
        others = FOREIGN.get(self.kind, ("wide",) if self.vectors > 1 else ("wide", "vectors"))
        return {name: value for name, value in asdict(self).items() if name not in others}


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts; 0 leaves it out, and what it costs to compute. token: of the next tokens as the text has
    them, which says little of what gists lack where the whole history would foretell them hardly better."""

    token: float = 1.0
    kl: float = 0.0
    lod1: float = 0.1
    lod2: float = 0.05
    separation: float = 0.05

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0:
                raise ConfigError(f"weights.{name} must be at least 0, got {value}")


@dataclass(frozen=True)
class FocusStage:
    """One part of the curriculum.

    share: of all steps. history: tokens before the horizon, least and most. budget: W, least and most. horizon: tokens
    foretold after the working context. views: passages a step. kinds: shares of the kinds of working context.
    rebuild: share of passages whose horizon is not what follows, but the history again, as far as it stands as gists.
    memory: share of the others with facts to recall, the rest is plain text; gisted: of those
    whose values are words, the share in which the facts are not opened, but read off gists. served: share of the steps'
    batches that ask ``asked`` questions of each suite instead, of one history of that length, in the contexts that the
    bundle's lens makes of it under that budget, gists shown or hidden as the bundle has them; views are the most that
    are used, and turns the most questions that follow each other in one context.
    """

    share: float
    history: tuple[int, int]
    budget: tuple[int, int]
    horizon: int = 64
    views: int = 6
    kinds: dict[str, float] = field(default_factory=lambda: {"mixed": 0.5, "lod1": 0.25, "coarse": 0.15, "full": 0.1})
    rebuild: float = 0.0
    memory: float = 0.0
    gisted: float = 0.5
    served: float = 0.0
    asked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUITES, 2))
    turns: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"stage share must lie in (0, 1], got {self.share}")
        for name in ("history", "budget"):
            low, high = getattr(self, name)
            if not 64 <= low <= high:
                raise ConfigError(f"stage {name} must be two numbers, 64 <= least <= most, got {(low, high)}")
        for name in ("horizon", "views", "turns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"stage {name} must be at least 1, got {getattr(self, name)}")
        strange = set(self.kinds) - set(KINDS)
        if strange or not sum(self.kinds.values()) > 0 or min(self.kinds.values()) < 0:
            raise ConfigError(f"stage kinds must be shares of {KINDS}, got {self.kinds}")
        if not set(self.asked) <= set(SUITES) or min(self.asked.values(), default=0) < 1:
            raise ConfigError(f"stage asked must be numbers of questions of {tuple(SUITES)}, got {self.asked}")
        if self.served and self.history[0] < LEAST_SERVED:
            raise ConfigError(f"stage history must be at least {LEAST_SERVED} where served, got {self.history}")
        for name in ("rebuild", "memory", "gisted", "served"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"stage {name} must lie in [0, 1], got {getattr(self, name)}")


BASE_STAGES = (
    Stage(0.5, 512, (96, 224), 0.2, 0.02, (2, 8), (4, 7), block_mask=0.8, wide_segments=0.8, memory=0.5),
    Stage(0.5, 1056, (128, 256), 0.25, 0.01, (3, 12), (4, 7), block_mask=0.8, wide_segments=0.8, memory=0.45),
)
"""The base's own training in a joint run: text, recall, copying and memory tasks in the layouts it is served in."""

CURRICULUM = (
    FocusStage(0.2, (384, 1024), (352, 512), kinds={"mixed": 0.3, "lod1": 0.6, "full": 0.1}),
    FocusStage(0.5, (512, 4096), (352, 768)),
    FocusStage(0.3, (1024, 40_000), (448, 1024), views=4),
)
"""Budgets and depth grow: LOD1 first, then LOD2, and LOD3 in the histories beyond K^3 = 32,768 tokens."""


@dataclass(frozen=True, kw_only=True)
class FocusTrainConfig(DecoderRunConfig):
    """model: the bundle to start from.

    mode: "frozen" trains GistNet alone, "adapted" low-rank updates of the base beside it, of ``rank``, and "joint" the
    base as well. base_share: share of the batches of a joint run that are of the base's own training (``base_stages``,
    each by its share), so that the base forgets nothing; text_share: share of their plain tokens that count.
    accumulate: batches a step. gist_rate: AdamW rate of the GistNet and of low-rank updates.
    train_embeddings: False leaves the base's embeddings as they are, so that a LensNet, which reads them, stays right.
    blend: how far what a joint run writes lies from the base that it began with towards the one that it ended with (1:
    the latter; Wortsman et al. 2022, WiSE-FT, section 3). recent_tokens: of the working contexts.
    """

    FIXED: ClassVar[tuple[str, ...]] = ("mode", "train_embeddings", "gist", "rank", "block_size", "seed")

    model: Path
    mode: str = "frozen"
    gist: GistShape = field(default_factory=GistShape)
    weights: LossWeights = field(default_factory=LossWeights)
    stages: tuple[FocusStage, ...] = CURRICULUM
    base_stages: tuple[Stage, ...] = BASE_STAGES
    rank: int = 16
    block_size: int = 32
    recent_tokens: int = 128
    steps: int = 2000
    accumulate: int = 1
    base_share: float = 0.5
    batch_tokens: int = 2304
    text_share: float = 0.5
    gist_rate: float = 1e-3
    muon_rate: float = 0.01
    adam_rate: float = 1.5e-3
    train_embeddings: bool = True
    blend: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ConfigError(f"mode must be one of {MODES}, got {self.mode!r}")
        if self.gist.kind == "excerpt":
            self._check_excerpts()
        self.check_positive("steps", "accumulate", "gist_rate")
        self.check_shares("base_share")
        for name in ("text_share", "blend"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if not self.stages or not self.base_stages:
            raise ConfigError("stages and base_stages must name at least one stage each")
        if self.mode == "joint" and self.train_embeddings and any(stage.served for stage in self.stages):
            raise ConfigError("train_embeddings must be false where stages are served: their lens reads the embeddings")

    def _check_excerpts(self) -> None:
        """Of excerpts nothing learns but the low-rank updates that read them."""
        if self.mode != "adapted":
            raise ConfigError(f"mode must be adapted for gist.kind excerpt, got {self.mode!r}")
        for name in ("lod1", "lod2", "separation"):
            if getattr(self.weights, name):
                raise ConfigError(f"weights.{name} must be 0 for gist.kind excerpt, got {getattr(self.weights, name)}")
