"""Methods of focusing that are compared: lenses, and baselines at the same budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mc_core.bundle.bundle import Bundle
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.lens import LENSES, lens_spec
from mc_core.focus.lens_learned import HybridLens
from mc_core.focus.lens_plain import RandomLens, RecencyLens
from mc_core.focus.view import Lens

BASELINES = ("recency", "sinks", "oracle", "full", "rag")
"""recency: the newest tokens alone, as truncation leaves them. sinks: the first block and the newest tokens. oracle:
the blocks of the answer are opened whatever the question says. full: all history raw, where the base's window holds it.
rag: the same base without any focus, asked with the best chunks of the text in its prompt.
"""

MEASURED_LENSES = tuple(name for name in LENSES if name not in BASELINES)


def default_lenses(bundle: Bundle) -> tuple[str, ...]:
    """The learned lens, alone and fused, if the bundle has one; lexical always."""
    if bundle.lensnet is None:
        return ("lexical",)
    return ("hybrid", bundle.lensnet.config.kind, "lexical")


def check_methods(bundle: Bundle, lenses: tuple[str, ...], baselines: tuple[str, ...]) -> None:
    """ConfigError for a lens or baseline that there is not, or that the bundle has no network for."""
    for name, given, allowed in (("lenses", lenses, MEASURED_LENSES), ("baselines", baselines, BASELINES)):
        strange = [one for one in given if one not in allowed]
        if strange:
            raise ConfigError(f"{name} must be of {', '.join(allowed)}, got {', '.join(strange)}")
    for lens in lenses:
        if LENSES[lens].learned and bundle.lensnet is None:
            raise ConfigError(f"lenses: {lens} needs a lensnet, and {bundle.name} has none")
    if not (lenses or baselines):
        raise ConfigError("lenses and baselines must not both be empty")


def reading_focus(focus: FocusConfig, lenses: tuple[str, ...]) -> FocusConfig:
    """Settings under which a history is read once for all lenses: keys are made if one of them needs keys."""
    learned = [lens for lens in lenses if LENSES[lens].learned]
    return replace(focus, lens="hybrid" if learned else "lexical")


@dataclass(frozen=True)
class Lenses:
    """The lenses of one history, all of which have indexed it: the lens it was read with, and that lens's parts."""

    reading: Lens
    focus: FocusConfig

    def of(self, name: str, bundle: Bundle) -> Lens:
        """A lens by name; ``reading_focus`` sees to it that it is there."""
        if name == "random":
            return RandomLens(self.focus.seed, self.focus.look_ahead)
        if isinstance(self.reading, HybridLens):
            if name == "lexical":
                return self.reading.lexical
            if name != "hybrid":
                lens_spec(name).check(bundle.lensnet)
                return self.reading.learned
        return self.reading


def plain_lens() -> Lens:
    """For what shows all it has: the newest is worth most."""
    return RecencyLens()
