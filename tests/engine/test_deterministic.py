"""``deterministic``: a reply is a function of its session, its prompt and its seed, to the last bit."""

from __future__ import annotations

from engine_lab import Lab, MakeLab, random_ids
from mc_core.engine.engine_config import EngineConfig

SEEDS = 24


def replies(lab: Lab, name: str, together: int) -> list[tuple[list[int], list[float]]]:
    """Ids and log probabilities of ``SEEDS`` sampled replies, ``together`` of them at a time."""
    told = []
    for first in range(0, SEEDS, together):
        seeds = range(first, first + together)
        running = [
            lab.start(
                lab.session(f"{name}-{seed}", 40 * seed),
                random_ids(30, seed),
                24,
                temperature=0.9,
                seed=seed,
                logprobs=0,
            )[0]
            for seed in seeds
        ]
        told += [(reply.wait().ids, reply.logprobs) for reply in running]
    return told


def test_a_seed_gives_the_same_reply_alone_and_in_a_batch(make_lab: MakeLab) -> None:
    """24 seeds give the same tokens and the same log probabilities, bit for bit, alone and eight at a time."""
    with make_lab(EngineConfig(max_sessions=8, deterministic=True)) as lab:
        assert replies(lab, "alone", 1) == replies(lab, "together", 8)
