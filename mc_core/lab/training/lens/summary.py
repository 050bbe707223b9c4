"""What a finished lens training run says of itself."""

from __future__ import annotations

from typing import Any

from mc_core.lab.training.lens.lens_training import LensTrainConfig
from mc_core.lab.training.lens.trainer import TrainedLens, open_run, validate


def lens_summary(config: LensTrainConfig, trained: TrainedLens) -> dict[str, Any]:
    """steps, seed, last losses, and recall by lens and task over the histories of the measurement at the end."""
    trainer = open_run(config, lambda progress: None)
    return {
        "steps": trained.step,
        "seed": config.seed,
        "losses": {name: round(value, 4) for name, value in trained.figures.items()},
        "blocks": config.validation_blocks,
        "recall": validate(trainer, config.histories),
    }
