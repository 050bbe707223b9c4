"""Draws the samples of a step."""

from __future__ import annotations

from numpy.random import Generator

from mc_core.lab.training.haystack import Haystack
from mc_core.lab.training.lens.lens_training import LensTrainConfig
from mc_core.lab.training.lens.samples import LensSample, reply_sample, task_sample, text_sample

FILLER = (4, 40)
"""Tokens of text around a statement, at the start of a run and when it has grown: what belongs to what is learned from
dense pieces, in a tenth of the steps."""


def draw_samples(rng: Generator, maker: Haystack, config: LensTrainConfig, step: int) -> list[LensSample]:
    """Episodes of several tasks, paraphrases as one long episode, and pairs of the corpus' own text."""
    filler = FILLER[0] + config.grown(step) * (FILLER[1] - FILLER[0])
    samples = []
    if "paraphrase" in config.tasks:
        samples.append(task_sample(rng, maker, "paraphrase", config.block_size, config.concepts - 4, filler))
    others = [task for task in config.tasks if task not in ("paraphrase", "absent")]
    for _ in range(config.episodes if others else 0):
        task, more = others[int(rng.integers(len(others)))], int(rng.integers(config.distractors + 1))
        samples.append(task_sample(rng, maker, task, config.block_size, more, filler))
    dialogues = maker.chats.any()
    for number in range(config.pairs):
        reply = reply_sample(rng, maker, config.block_size) if dialogues and number % 2 else None
        samples.append(reply or text_sample(rng, maker, config.block_size))
    return samples
