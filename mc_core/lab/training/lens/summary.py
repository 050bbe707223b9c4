"""What a finished lens training run says of itself."""

from __future__ import annotations

from typing import Any

from mc_core.lab.training.lens.trainer import LensTrainer, validate


def lens_summary(trainer: LensTrainer) -> dict[str, Any]:
    """steps, seed, last losses, and recall by lens and task over the histories of the measurement at the end."""
    config = trainer.config
    return {
        "steps": trainer.step,
        "seed": config.seed,
        "losses": {name: round(value, 4) for name, value in trainer.figures.items()},
        "blocks": config.validation_blocks,
        "recall": validate(trainer, config.histories),
    }
