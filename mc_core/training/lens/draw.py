"""Draws the samples of a step."""

from __future__ import annotations

from numpy.random import Generator

from mc_core.training.haystack import Haystack
from mc_core.training.lens.config import LensTrainConfig
from mc_core.training.lens.samples import LensSample, episode_sample, reply_sample, text_sample


def draw_samples(rng: Generator, maker: Haystack, config: LensTrainConfig) -> list[LensSample]:
    """``episodes`` of each task, paraphrases as one long episode, and pairs of the corpus' own text."""
    samples = []
    for task in config.tasks:
        if task == "paraphrase":
            samples.append(episode_sample(rng, maker, task, config.block_size, config.concepts - 4))
            continue
        for _ in range(config.episodes):
            more = int(rng.integers(config.distractors + 1))
            samples.append(episode_sample(rng, maker, task, config.block_size, more))
    dialogues = maker.chats.any()
    for number in range(config.pairs):
        reply = reply_sample(rng, maker, config.block_size) if dialogues and number % 2 else None
        samples.append(reply or text_sample(rng, maker, config.block_size))
    return samples
