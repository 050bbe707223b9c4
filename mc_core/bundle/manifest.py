"""``bundle.json``: what a bundle's networks are, how they want to be run, and the evaluation that they passed."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from typing import Any

import torch

from mc_core.bundle.base_file import BaseFile
from mc_core.errors import ConfigError
from mc_core.focus.lens import LENSES
from mc_core.kv.repair import REPAIR_MODES
from mc_core.models.decoder_config import DecoderConfig
from mc_core.positions.policies import POLICIES
from mc_core.tree.tree_config import BLOCK_SIZES

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """Contents of ``bundle.json``; every field has the default of a plain Hugging Face folder.

    block_size: K that the networks were trained for. lens, positions, repair: "auto" lets the bundle choose by what
    it holds. sigma_scale: c of the gaussian policies, as fitted. gistnet, lensnet: the arguments the networks were
    made with, None = not there. evaluation: by network ("gistnet", "lensnet") an object with ``passed`` and the
    measured figures; a network that did not pass is not used by default. focus: further defaults of ``FocusConfig``.
    base: the model file that the networks are for (see ``BaseFile``), None = the base lies in the bundle's own folder.
    adapters: the ``rank`` of the low-rank updates with which the base reads gists, None = it reads them as it is.
    """

    format: int = FORMAT
    name: str = ""
    block_size: int = 32
    lens: str = "auto"
    positions: str = "auto"
    repair: str = "auto"
    sigma_scale: float = 0.25
    gistnet: Mapping[str, Any] | None = None
    lensnet: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    focus: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    base: Mapping[str, Any] | None = None
    adapters: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(f"format of bundle.json must be {FORMAT}, got {self.format!r}: another version made it")
        choices: dict[str, tuple[object, ...]] = {
            "block_size": BLOCK_SIZES,
            "lens": ("auto", *LENSES),
            "positions": ("auto", *POLICIES),
            "repair": ("auto", *REPAIR_MODES),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} in bundle.json must be one of {allowed}, got {getattr(self, name)!r}")
        if self.lens in LENSES and LENSES[self.lens].learned and self.lensnet is None:
            raise ConfigError(f"lens {self.lens!r} in bundle.json needs a lensnet, and the bundle has none")
        if self.base is not None:
            BaseFile.from_json(self.base)

    @property
    def base_file(self) -> BaseFile | None:
        """What ``base`` names."""
        return None if self.base is None else BaseFile.from_json(self.base)

    def passed(self, network: str) -> bool:
        """The network is there and its evaluation says ``passed``."""
        return getattr(self, network) is not None and self.evaluation.get(network, {}).get("passed") is True

    def networks(self) -> dict[str, str]:
        """By network: "absent", "passed", "failed" its evaluation, or "unmeasured" as long as it has none."""
        return {name: self._standing(name) for name in ("gistnet", "lensnet")}

    @property
    def unproved(self) -> bool:
        """Whether a network is there that may not be used; a model that comes without one lacks nothing."""
        return any(standing not in ("passed", "absent") for standing in self.networks().values())

    def _standing(self, network: str) -> str:
        if getattr(self, network) is None:
            return "absent"
        if "passed" not in self.evaluation.get(network, {}):
            return "unmeasured"
        return "passed" if self.passed(network) else "failed"

    def default_lens(self) -> str:
        """Learned and lexical fused once the learned lens has passed; until then lexical."""
        if self.lens != "auto":
            return self.lens
        return "hybrid" if self.passed("lensnet") else "lexical"

    def default_positions(self) -> str:
        return "compact" if self.positions == "auto" else self.positions

    def default_repair(self, base: DecoderConfig) -> str:
        """``block`` is exact for a base trained with the block mask, and for no other."""
        if self.repair != "auto":
            return self.repair
        return "block" if base.block_mask else "incremental"

    def to_json(self) -> dict[str, Any]:
        """JSON object; ``from_json`` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Manifest:
        """ConfigError for unknown or ill-typed fields."""
        strange = set(raw) - {f.name for f in fields(cls)}
        if strange and raw.get("format", FORMAT) == FORMAT:
            raise ConfigError(f"unknown fields in bundle.json: {sorted(strange)}")
        known = {key: value for key, value in raw.items() if key not in strange}
        for name in ("gistnet", "lensnet", "evaluation", "focus", "versions", "base", "adapters"):
            optional = name in ("gistnet", "lensnet", "base", "adapters")
            absent = known.get(name) is None and (name not in known or optional)
            if not absent and not isinstance(known.get(name, {}), Mapping):
                raise ConfigError(f"{name} in bundle.json must be an object")
        if not isinstance(known.get("sigma_scale", 0.0), int | float):
            raise ConfigError("sigma_scale in bundle.json must be a number")
        return cls(**known)


def current_versions() -> dict[str, str]:
    """What a bundle written now was made with."""
    try:
        own = metadata.version("megacontext")
    except metadata.PackageNotFoundError:
        own = "source"
    return {"megacontext": own, "torch": torch.__version__, "python": platform.python_version()}
