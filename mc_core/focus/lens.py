"""All lenses, by name. To add one: a file of its own with a function that makes it, a line in ``LENSES``, a test.

Light to import, so that settings and manifests can name the lenses: a lens's own file is loaded when one is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import ConfigError

if TYPE_CHECKING:
    from mc_core.focus.focus_config import FocusConfig
    from mc_core.focus.view import Lens
    from mc_core.models.words import Words
    from mc_core.nets.lensnet import LensNet

Ids = NDArray[np.int32]
Source = Literal["ids", "text", "vectors"]


@dataclass(frozen=True, eq=False)
class LensParts:
    """What lenses are made of: settings (see ``FocusConfig``), and what the bundle has.

    lensnet: None without one. words: how token ids make words; without it each id is one, and no leads are found.
    decode: ids [n] -> their text, for a lens that indexes text.
    """

    block_size: int
    look_ahead: int
    neighbours: int
    seed: int
    lensnet: LensNet | None = None
    words: Words | None = None
    decode: Callable[[Ids], str] | None = None


@dataclass(frozen=True)
class LensSpec:
    """A lens by name, and what it takes.

    maker: "module:function", ``LensParts`` -> ``Lens``. indexes: what of the history it searches. "ids" of blocks (as
    ``Lens.append`` brings them) and "text" (``LensParts.decode`` of them) are indexed in memory, anew when a session
    comes back; "vectors" are lens keys of the LensNet's key network, if it has one, made by the tree, kept in the store
    with that network's fingerprint, and made anew when it is another. nets: kinds of LensNet that it works with, none
    if empty.
    """

    name: str
    maker: str
    indexes: frozenset[Source] = frozenset()
    nets: tuple[str, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether it needs a LensNet."""
        return bool(self.nets)

    @property
    def needs_vectors(self) -> bool:
        """Whether it sees gists or searches lens keys."""
        return self.learned or "vectors" in self.indexes

    def check(self, net: LensNet | None) -> None:
        """ConfigError if the network that it needs is not there, or of another kind."""
        if not self.learned:
            return
        if net is None:
            others = [spec.name for spec in LENSES.values() if not spec.learned]
            raise ConfigError(f"lens must be one of {', '.join(others)} without a trained LensNet, got {self.name}")
        if net.config.kind not in self.nets:
            raise ConfigError(f"lens must be the kind the LensNet was trained as ({net.config.kind}), got {self.name}")

    def make(self, parts: LensParts) -> Lens:
        """One for a session."""
        self.check(parts.lensnet)
        module, function = self.maker.split(":")
        lens: Lens = getattr(import_module(module), function)(parts)
        return lens


_LEARNED, _LEXICAL, _PLAIN = (f"mc_core.focus.lens_{name}" for name in ("learned", "lexical", "plain"))
_SPECS = (
    LensSpec("hybrid", f"{_LEARNED}:make_hybrid", frozenset({"ids", "vectors"}), ("cross", "transformer")),
    LensSpec("cross", f"{_LEARNED}:make_learned", frozenset({"ids", "vectors"}), ("cross",)),
    LensSpec("transformer", f"{_LEARNED}:make_learned", frozenset({"ids", "vectors"}), ("transformer",)),
    LensSpec("lexical", f"{_LEXICAL}:make_lexical", frozenset({"ids"})),
    LensSpec("recency", f"{_PLAIN}:make_recency"),
    LensSpec("random", f"{_PLAIN}:make_random"),
)
LENSES: Mapping[str, LensSpec] = {spec.name: spec for spec in _SPECS}


def lens_spec(name: str) -> LensSpec:
    """The lens of that name -> ConfigError names all there are."""
    if name not in LENSES:
        raise ConfigError(f"lens must be one of {', '.join(LENSES)}, got {name!r}")
    return LENSES[name]


def make_lens(
    name: str,
    config: FocusConfig,
    lensnet: LensNet | None = None,
    words: Words | None = None,
    decode: Callable[[Ids], str] | None = None,
    *,
    waiting: bool = False,
) -> Lens:
    """A lens for one session -> ConfigError for an unknown one, or a learned one without its network.

    waiting: the session's vectors are not all there; one that needs them is not asked yet (see ``WaitingLens``).
    """
    parts = LensParts(config.block_size, config.look_ahead, config.neighbours, config.seed, lensnet, words, decode)
    spec = lens_spec(name)
    if waiting and spec.needs_vectors:
        from mc_core.focus.lens_waiting import WaitingLens

        return WaitingLens(spec.make(parts), parts)
    return spec.make(parts)
