"""Writes what a focus training run made as a bundle."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mc_core.bundle.base_file import BaseFile
from mc_core.bundle.bundle import ADAPTERS, GISTNET, LENSNET, MANIFEST, load_bundle, save_networks
from mc_core.bundle.manifest import Manifest, current_versions
from mc_core.errors import ConfigError
from mc_core.lab.training.focus.focus_training import FocusTrainConfig
from mc_core.lab.training.focus.model import FocusModel
from mc_core.models.loading import find_gguf, read_json, save_decoder

NOT_COPIED = (MANIFEST, GISTNET, LENSNET, ADAPTERS)
SPECIAL: tuple[str, ...] = ("eos_token_id", "bos_token_id", "pad_token_id")


@torch.no_grad()
def blend(config: FocusTrainConfig, model: FocusModel) -> None:
    """Put a joint run's base ``config.blend`` of the way from the one that it began with to where it stands.

    A short run on one kind of question gains there and loses elsewhere; on the way between is most of the gain and
    little of the loss (WiSE-FT, arXiv 2109.01903). GistNet stays as the run made it.
    """
    if config.mode == "joint" and config.blend < 1:
        before = dict(load_bundle(config.model, config.device).decoder.named_parameters())
        # Parameters, not the state: there a tied head would be blended twice.
        for name, parameter in model.decoder.named_parameters():
            parameter.copy_(before[name].lerp(parameter, config.blend))


def export_focus(
    config: FocusTrainConfig, model: FocusModel, out: Path, figures: dict[str, Any], dtype: torch.dtype = torch.float16
) -> None:
    """Write the base that the run began with, or the one that a joint run made, with its GistNet into ``out``; of a
    GGUF file only its name.

    figures: of the run, kept as the GistNet's evaluation; it has not passed its gate yet. A LensNet stays if the base's
    embeddings, which it reads, are still the same. dtype: of a joint run's base on disk. ConfigError if ``out`` is the
    model's own folder.
    """
    if out.resolve() == config.model.resolve():
        raise ConfigError(f"bundle must be another folder than model, got {out} for both")
    out.mkdir(parents=True, exist_ok=True)
    joint, base_file = config.mode == "joint", find_gguf(config.model)
    for file in sorted(config.model.iterdir()) if base_file is None else ():
        weights = file.name.startswith("model") and ".safetensors" in file.name
        if file.is_file() and file.name not in NOT_COPIED and not (joint and weights):
            shutil.copyfile(file, out / file.name)
    if joint:
        known = read_json(out / "config.json")
        save_decoder(out, model.decoder, dtype, {key: known[key] for key in SPECIAL if key in known})
    path = config.model / MANIFEST
    before = Manifest.from_json(read_json(path)) if path.exists() else Manifest()
    stays = before.lensnet is not None and not (joint and config.train_embeddings)
    kept = load_bundle(config.model).lensnet if stays else None
    manifest = replace(
        before,
        name=before.name or ("" if base_file else config.model.resolve().name),
        block_size=config.block_size,
        lens=before.lens if kept is not None else "auto",
        gistnet=config.gist.arguments(),
        adapters=None if model.low_rank is None else {"rank": config.rank},
        lensnet=before.lensnet if kept is not None else None,
        evaluation={**before.evaluation, "gistnet": {"passed": False, **figures}},
        versions=current_versions(),
        base=asdict(BaseFile.of(base_file)) if base_file else before.base,
    )
    if kept is None:
        manifest = replace(manifest, evaluation={k: v for k, v in manifest.evaluation.items() if k != "lensnet"})
    save_networks(out, manifest, model.gistnet, kept, None if model.low_rank is None else model.low_rank.updates())
