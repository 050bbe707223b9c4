"""What a working context is worth: loss of the true next tokens after it, against truncation and the whole history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mc_core.bundle.bundle import Bundle
from mc_core.context.working_context import WorkingContext
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.data.cache import Stream
from mc_core.lab.evaluation.statistics import Estimate, bootstrap
from mc_core.lab.evaluation.suites import Told
from mc_core.lab.training.focus.contexts import ContextKind, ContextShape, Passage, sample_context, view_of
from mc_core.lab.training.focus.model import FocusModel
from mc_core.lab.training.focus.passages import cut
from mc_core.lab.training.focus.view import View
from mc_core.models.decoder import Decoder
from mc_core.positions.policies import make_policy
from mc_core.session.factory import SessionFactory
from mc_core.session.session import QUESTION_TOKENS, Session
from mc_core.tree.tree import MegaContextTree

HORIZONS = (32, 64, 128)
SHARE = 4
"""The budget is this part of the history."""
REFERENCES = ("full", "recency", "sinks", "hidden")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NllPlan:
    """lengths: tokens of history, each with a budget of a quarter of it. samples: passages of each source."""

    lengths: tuple[int, ...] = (1024, 1920, 4096)
    samples: int = 64
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Loss:
    """One source at one length and horizon, in nats a token.

    means: NLL after each view: focus (what the lens makes, as it is served), hidden (the same without gists), recency
    and sinks (truncation at the same budget), lod1 and lod2 (all outside the tail as gists of that level), full (the
    whole history raw). less: focus minus a reference, paired over samples. kept: share of the context's gain that the
    focus keeps, (recency - focus) / (recency - full); None where the full view does not fit or gains nothing.
    """

    source: str
    chat: bool
    tokens: int
    budget: int
    horizon: int
    samples: int
    means: dict[str, float]
    less: dict[str, Estimate]
    kept: float | None

    def to_json(self) -> dict[str, Any]:
        less = {name: estimate.rounded() for name, estimate in self.less.items()}
        means = {name: round(value, 4) for name, value in self.means.items()}
        return {
            **asdict(self),
            "means": means,
            "less": less,
            "kept": None if self.kept is None else round(self.kept, 4),
        }


def nll_suite(
    bundle: Bundle,
    streams: Sequence[Stream],
    plan: NllPlan,
    lens: str,
    recent: int,
    told: Told,
    stock: Decoder | None = None,
) -> list[Loss]:
    """Measure each held-out stream that is long enough. bundle: its ``hidden_gists`` says whether gists are shown.

    stock: the base without the bundle's adapters, None if it has none: what shows no gists is measured with that.
    """
    found = []
    work = [(length, stream) for length in plan.lengths for stream in streams if len(stream) > length + max(HORIZONS)]
    if not work:
        raise ConfigError(
            f"lengths: no held-out source is longer than {min(plan.lengths)} tokens and the {max(HORIZONS)} after them"
        )
    for done, (length, stream) in enumerate(work):
        told("nll", done, len(work))
        found += _measure(NllViews(bundle, length, lens, recent, stock), stream, plan)
    told("nll", len(work), len(work))
    return found


def _measure(views: NllViews, stream: Stream, plan: NllPlan) -> list[Loss]:
    rng = np.random.default_rng([plan.seed, views.length])
    passages = [cut(rng, stream, views.length, max(HORIZONS)) for _ in range(plan.samples)]
    parts = [views.losses(passages[at : at + plan.batch]) for at in range(0, len(passages), plan.batch)]
    losses = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return [_loss(views, stream, horizon, losses) for horizon in HORIZONS]


def _loss(views: NllViews, stream: Stream, horizon: int, losses: dict[str, Floats]) -> Loss:
    by_view = {name: values[:, :horizon].mean(1) for name, values in losses.items()}
    means = {name: float(values.mean()) for name, values in by_view.items()}
    less = {name: bootstrap(by_view["focus"] - by_view[name]) for name in REFERENCES if name in by_view}
    gain = means["recency"] - means["full"] if "full" in means else 0.0
    kept = (means["recency"] - means["focus"]) / gain if gain > 0 else None
    samples = len(by_view["focus"])
    return Loss(stream.name, stream.chat, views.length, views.budget, horizon, samples, means, less, kept)


class NllViews:
    """Shows histories of one length in all ways, under the bundle's own mask and positions."""

    def __init__(self, bundle: Bundle, length: int, lens: str, recent: int, stock: Decoder | None = None) -> None:
        size = bundle.block_size
        if length < 8 * size * SHARE:
            raise ConfigError(f"lengths must be at least {8 * size * SHARE} for blocks of {size}, got {length}")
        self.bundle, self.length = bundle, length // size * size
        self.budget = self.length // SHARE // size * size
        self.recent = min(recent, self.budget // 4)
        self.shape = ContextShape(self.budget, self.recent, size, bundle.segment_blocks, bundle.gistnet.vectors)
        self.focus = FocusConfig(budget=max(self.budget, 1024), block_size=size, recent_tokens=self.recent, lens=lens)
        policy = make_policy(bundle.positions, bundle.decoder.config, size, bundle.sigma_scale)
        self.model = FocusModel(bundle.decoder, bundle.gistnet, policy)
        self.without = self.model if stock is None else FocusModel(stock, bundle.gistnet, policy)
        self.factory = SessionFactory(bundle, self.focus)
        self.window = bundle.decoder.config.max_position_embeddings

    @torch.no_grad()
    def losses(self, passages: Sequence[Passage]) -> dict[str, Floats]:
        """NLL [passages, H] of the next H tokens after each view that fits the base's window."""
        focused, trees = self._focused(passages, self.bundle)
        found = {"focus": focused, "hidden": focused}
        if not self.bundle.hidden_gists:
            # Without gists to pay for, it has room for more raw tokens.
            found["hidden"], _ = self._focused(passages, replace(self.bundle, hidden_gists=True))
        for name, first in (("recency", 0), ("sinks", self.shape.block_size)):
            cut = [self._cut(passage, first) for passage in passages]
            found[name] = self._read([self._of_kind(p, "full") for p in cut], trees, True)
        kinds: tuple[tuple[str, ContextKind], ...] = (("lod1", "lod1"), ("lod2", "coarse"), ("full", "full"))
        for name, kind in kinds:
            views = [self._of_kind(passage, kind) for passage in passages]
            if self._fits(views[0]) and (name != "lod2" or (views[0].layout.levels > 1).any()):
                found[name] = self._read(views, trees, name == "full")
        return found

    def _focused(self, passages: Sequence[Passage], bundle: Bundle) -> tuple[Floats, list[MegaContextTree]]:
        """Losses after what the focus makes of the histories, asked by their newest tokens, and their trees."""
        sessions = [self._session(passage, bundle.gist_cost) for passage in passages]
        for session in sessions:
            question = session.tree.ids(max(0, session.tokens - QUESTION_TOKENS), session.tokens)
            session.commit_focus(session.propose(question))
        pairs = zip(passages, sessions, strict=True)
        views = [self._view(passage, session.wc, bundle.hidden_gists) for passage, session in pairs]
        trees = [session.tree for session in sessions]
        return self._read(views, trees, bundle.hidden_gists), trees

    def _session(self, passage: Passage, gist_cost: int) -> Session:
        """A session that has read the history, with the budget of this measurement."""
        session = self.factory.create("nll", "local", model=self.bundle.name)
        session.wc = WorkingContext(self.shape.block_size, self.budget, self.recent, gist_cost=gist_cost)
        session.append(passage.ids[: passage.history].astype(np.int32))
        return session

    def _cut(self, passage: Passage, first: int) -> Passage:
        """The first tokens and the newest, as many as the budget holds; what truncation leaves of a history."""
        kept = np.r_[0:first, passage.history - self.budget + first : len(passage.ids)]
        return Passage(passage.ids[kept], self.budget, passage.weights[kept])

    def _of_kind(self, passage: Passage, kind: ContextKind) -> View:
        roomy = replace(self.shape, budget=passage.history + 2 * self.shape.block_size)
        wc = sample_context(np.random.default_rng(0), passage, kind, roomy)
        return self._view(passage, wc, False)

    def _view(self, passage: Passage, wc: WorkingContext, hidden: bool) -> View:
        view = view_of(passage, wc, self.shape, hidden_gists=hidden)
        # Only what comes after the context is measured.
        weights = view.weights.copy()
        weights[: len(view.layout)] = 0
        return replace(view, weights=weights)

    def _fits(self, view: View) -> bool:
        return len(view.layout) + len(view.future) <= self.window

    def _read(self, views: Sequence[View], trees: Sequence[MegaContextTree], hidden: bool) -> Floats:
        model = self.without if hidden else self.model
        output = model(views, model.gists(trees, views))
        losses = output.losses()[output.future].double().view(len(views), -1)
        return losses.cpu().numpy()
