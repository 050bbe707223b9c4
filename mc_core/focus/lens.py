"""Lenses by name."""

from __future__ import annotations

from mc_core.errors import ConfigError
from mc_core.focus.focus_config import LENSES, FocusConfig
from mc_core.focus.lens_learned import HybridLens, LearnedLens, check_net
from mc_core.focus.lens_lexical import LexicalLens
from mc_core.focus.lens_plain import RandomLens, RecencyLens
from mc_core.focus.view import Lens, LensView
from mc_core.models.words import Words
from mc_core.nets.lensnet import LensNet


def make_lens(
    kind: str,
    config: FocusConfig,
    lensnet: LensNet | None = None,
    words: Words | None = None,
) -> Lens:
    """A lens for one session -> ConfigError for an unknown kind, or a learned one without its network.

    words: of the vocabulary, for the lexical lens; without it each token id is a word, and no leads are found.
    """
    if kind == "recency":
        return RecencyLens()
    if kind == "random":
        return RandomLens(config.seed, config.look_ahead)
    if kind not in LENSES:
        raise ConfigError(f"lens must be one of {', '.join(LENSES)}, got {kind!r}")
    lexical = LexicalLens(config.block_size, config.look_ahead, config.neighbours, words)
    if kind == "lexical":
        return lexical
    learned = LearnedLens(check_net(kind, lensnet), config.block_size, config.look_ahead, config.neighbours)
    return learned if kind in ("cross", "transformer") else HybridLens(learned, lexical)


__all__ = ["Lens", "LensView", "make_lens"]
