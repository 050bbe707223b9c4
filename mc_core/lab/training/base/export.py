"""Writes a trained base as a bundle: a Hugging Face folder with ``bundle.json`` and a model card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from mc_core.bundle.bundle import MANIFEST
from mc_core.bundle.manifest import Manifest, current_versions
from mc_core.errors import ConfigError
from mc_core.lab.data.train_tokenizer import generation_settings
from mc_core.lab.training.base.card import Card, with_figures
from mc_core.lab.training.base.model import BaseShape
from mc_core.lab.training.checkpoint import checkpoints
from mc_core.lab.training.sample import BLOCK
from mc_core.models.decoder import Decoder
from mc_core.models.loading import read_json, save_decoder, write_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
CARD = "README.md"


def export_run(run: Path, out: Path, card: Card, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """Write the newest checkpoint of a run's folder, its tokenizer and a model card into ``out``.

    card: its ``name`` is the bundle's. dtype: of the weights on disk. Returns the figures that ``bundle.json`` has of
    the run. ConfigError if the run has no checkpoint.
    """
    settings, figures = read_json(run / "config.json"), run_figures(run)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    decoder = load_run(run, tokenizer.get_vocab_size())
    out.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER_FILES:
        shutil.copyfile(run / file, out / file)
    save_decoder(out, decoder, dtype, generation_settings(tokenizer))
    manifest = Manifest(
        name=card.name,
        block_size=BLOCK,
        lens="lexical",
        positions="compact",
        repair="block",
        evaluation={"base": figures},
        versions=current_versions(),
    )
    write_json(out / MANIFEST, manifest.to_json())
    (out / CARD).write_text(card.text(decoder.config, tokenizer, settings, figures), encoding="utf-8")
    for file in (*TOKENIZER_FILES, "config.json", "model.safetensors", MANIFEST, CARD):
        (out / file).chmod(0o644)
    return figures


def load_run(run: Path, vocab_size: int) -> Decoder:
    """The model of a run's newest checkpoint, in eval mode."""
    found = checkpoints(run / "checkpoints")
    if not found:
        raise ConfigError(f"{run} holds no checkpoint")
    decoder = Decoder(BaseShape(**read_json(run / "config.json")["shape"]).config(vocab_size))
    saved = load_file(found[-1] / "tensors.safetensors")
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(saved[f"model.{name}"])
    return decoder.eval()


def run_figures(run: Path) -> dict[str, Any]:
    """Steps, tokens, seed and last logged losses of a run's newest checkpoint."""
    found = checkpoints(run / "checkpoints")
    if not found:
        raise ConfigError(f"{run} holds no checkpoint")
    state = read_json(found[-1] / "state.json")
    figures = {"steps": state["step"], "tokens": state["tokens"], "seed": state["config"]["seed"]}
    log = run / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    known = [line for line in lines if line["done"] <= state["step"]]
    losses = {name: round(value, 4) for name, value in (known[-1]["losses"] or {}).items()} if known else {}
    return {**figures, "training_losses": losses}


def add_figures(bundle: Path, measured: dict[str, Any]) -> None:
    """Put an evaluation (``evaluate_base``) into ``bundle.json`` and the model card of a bundle."""
    manifest = Manifest.from_json(read_json(bundle / MANIFEST))
    figures = {**manifest.evaluation.get("base", {}), **measured}
    manifest = replace(manifest, evaluation={**manifest.evaluation, "base": figures})
    write_json(bundle / MANIFEST, manifest.to_json())
    (bundle / MANIFEST).chmod(0o644)
    card = bundle / CARD
    if card.exists():
        card.write_text(with_figures(card.read_text(encoding="utf-8"), figures), encoding="utf-8")
