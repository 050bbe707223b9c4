"""How much memory and disk does a server need? The formulas of docs/operations.md against what is really allocated.

Slabs: each of ``max_sessions`` rows holds keys and values, and keys before their rotation where places move, for W + K
slots: known before a server starts. A history: 4 bytes a hot token id, one gist a node, lens keys a block, and the
word index, whose size is the text's matter: a posting (4 bytes) for each distinct token and pair of neighbours a block.
Pools grow by doubling, so up to twice as much is allocated as is used.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.common import BUNDLE, Bench, bench_engine, report
from bench.text import novel_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig
from mc_core.kv.slab import SlabPool
from mc_core.models.decoder_config import DecoderConfig
from mc_core.session.session import Session


def slab_bytes(config: DecoderConfig, slots: int, number_bytes: int, unrotated: bool) -> int:
    """One session's slab: ``slots`` is W + K. unrotated: keys are kept twice (not under repair=exact)."""
    vectors = (3 if unrotated else 2) * config.num_layers * config.num_kv_heads * config.head_dim
    # The bias of a slot, and its position as a float64.
    return slots * (vectors * number_bytes + number_bytes + 8)


def history_bytes(tokens: int, hot_tokens: int, dim: int, block_size: int, lens_keys: int = 0) -> int:
    """Ids, gists and lens keys (float16) of one session in memory, without the word index and what is ahead of use.

    lens_keys: numbers in the lens keys of a block.
    """
    return round(
        4 * min(tokens, hot_tokens) + 2 * dim * tokens / (block_size - 1) + 2 * lens_keys * tokens / block_size
    )


def word_index_bytes(session: Session) -> int:
    """Of a session whose lens finds words, else 0."""
    lens = getattr(session.lens, "lexical", session.lens)
    return lens.index.nbytes if hasattr(lens, "index") else 0


def pool_formula(pool: SlabPool, config: DecoderConfig) -> int:
    """What the formula says of a pool of slabs."""
    return pool.rows * slab_bytes(config, pool.slots, pool.dtype.itemsize, pool.unrotated is not None)


def stored_bytes(folder: Path) -> int:
    """Of the database and its log."""
    return sum(file.stat().st_size for file in folder.glob("bench.sqlite*"))


def measure(bench: Bench, tokens: int, hot_tokens: int, text: Path | None) -> dict[str, Any]:
    """Ingest ``tokens`` into a new session -> bytes by the formula and as allocated."""
    folder = Path(bench.store._path).parent
    before = stored_bytes(folder)
    session = bench.session(f"history-{tokens}")
    bench.engine.ingest(session, novel_ids(bench.bundle.tokenizer, tokens, text)).result()
    bench.engine.commit(session).result()
    tree = session.tree
    hot = tree.hot_bytes()
    keys = tree.config.lens_keys * tree.config.lens_key_dim
    index = word_index_bytes(session)
    return {
        "tokens": tokens,
        "formula": history_bytes(tokens, hot_tokens, tree.dim, tree.config.block_size, keys),
        "allocated": sum(hot.values()),
        "ids": hot["ids"],
        "gists": hot["gists"],
        "word index": index,
        "index B/token": index / tokens,
        "memory B/token": (sum(hot.values()) + index) / tokens,
        "disk B/token": (stored_bytes(folder) - before) / tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--text", type=Path, help="UTF-8 text to use as history; repeated as needed")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    engine = EngineConfig(hot_tokens=262_144)
    with bench_engine(options.model, focus=FocusConfig(), config=engine) as bench:
        pool, config = bench.engine.core.runner.pool, bench.bundle.decoder.config
        rows = [measure(bench, tokens, engine.hot_tokens or tokens, options.text) for tokens in options.tokens]
        summary = {
            "slabs": pool.rows,
            "slots": pool.slots,
            "slab_bytes_formula": pool_formula(pool, config),
            "slab_bytes": pool.bytes(),
            "dim": config.hidden_size,
        }
        report("sizes", rows, summary, options.save)


if __name__ == "__main__":
    main()
