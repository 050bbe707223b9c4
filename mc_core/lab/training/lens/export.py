"""Writes what a lens training run made as a bundle."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mc_core.bundle.base_file import BaseFile
from mc_core.bundle.bundle import LENSNET, MANIFEST, lensnet_arguments, load_bundle, save_networks
from mc_core.bundle.manifest import Manifest, current_versions
from mc_core.errors import ConfigError
from mc_core.lab.training.lens.lens_training import LensTrainConfig
from mc_core.models.loading import find_gguf, read_json
from mc_core.nets.lensnet import LensNet


def export_lens(config: LensTrainConfig, net: LensNet, out: Path, figures: dict[str, Any]) -> None:
    """Write the model that the run began with, together with its LensNet, into ``out``; of a GGUF file only its name.

    figures: of the run, kept as the LensNet's evaluation; it has not passed its gate yet. ConfigError if ``out`` is the
    model's own folder.
    """
    if out.resolve() == config.model.resolve():
        raise ConfigError(f"bundle must be another folder than model, got {out} for both")
    out.mkdir(parents=True, exist_ok=True)
    file = find_gguf(config.model)
    if file is None:
        _copy_model(config.model, out)
    path = config.model / MANIFEST
    before = Manifest.from_json(read_json(path)) if path.exists() else Manifest()
    gistnet = load_bundle(config.model, gists=True).gistnet if before.gistnet is not None else None
    manifest = replace(
        before,
        name=before.name or ("" if file else config.model.resolve().name),
        block_size=config.block_size,
        lensnet=lensnet_arguments(net),
        evaluation={**before.evaluation, "lensnet": {"passed": False, **figures}},
        versions=current_versions(),
        base=asdict(BaseFile.of(file)) if file else before.base,
    )
    save_networks(out, manifest, gistnet, net)


def _copy_model(model: Path, out: Path) -> None:
    for file in sorted(model.iterdir()):
        if file.is_file() and file.name not in (MANIFEST, LENSNET):
            shutil.copyfile(file, out / file.name)
