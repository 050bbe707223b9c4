"""Bundles of one tiny base with LensNets and GistNets of random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from mc_core.bundle.bundle import Bundle, lensnet_arguments, load_bundle, make_gistnet, save_networks
from mc_core.bundle.manifest import Manifest
from mc_core.nets.lensnet import LensKind, LensNet, LensNetConfig
from support import write_model

GIST = {"kind": "mean", "pooling": "query", "head": "linear"}


def lens_bundle(
    folder: Path, kind: LensKind = "cross", seed: int = 0, gistnet_seed: int | None = None, vectors: int = 1
) -> Bundle:
    """The tiny base with a LensNet, and with a trained-like GistNet of ``vectors`` if ``gistnet_seed`` says which."""
    write_model(folder)
    torch.manual_seed(seed)
    lensnet = LensNet(LensNetConfig(64, kind=kind, width=16, heads=2, keys=2, key_dim=8)).eval()
    gistnet, arguments = None, {**GIST, "vectors": vectors}
    if gistnet_seed is not None:
        torch.manual_seed(gistnet_seed)
        gistnet = make_gistnet(64, 32, arguments)
        torch.nn.init.constant_(gistnet.scale, 0.5)
    described = arguments if gistnet is not None else None
    manifest = Manifest(name="tiny", lensnet=lensnet_arguments(lensnet), gistnet=described)
    save_networks(folder, manifest, gistnet=gistnet, lensnet=lensnet)
    return load_bundle(folder)
