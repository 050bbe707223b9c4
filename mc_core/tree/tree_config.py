"""Settings of a tree, and what an append reports."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mc_core.errors import ConfigError

BLOCK_SIZES = (16, 32, 64)


@dataclass(frozen=True)
class TreeConfig:
    """How a tree keeps things, and where.

    cache_lod0: keep the input embeddings of the hot tokens too (4 d bytes a token); released for good once they are
    more than ``cache_lod0_max_tokens``. gist_dtype: of gists and lens keys. lens_keys: lens keys a LOD1 node, of
    ``lens_key_dim`` numbers each; 0 without a learned lens.
    """

    block_size: int = 32
    cache_lod0: bool = False
    cache_lod0_max_tokens: int | None = None
    gist_dtype: torch.dtype = torch.float32
    device: str = "cpu"
    lens_keys: int = 0
    lens_key_dim: int = 64

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise ConfigError(f"block_size must be one of {BLOCK_SIZES}, got {self.block_size}")
        if self.cache_lod0_max_tokens is not None and self.cache_lod0_max_tokens < 0:
            raise ConfigError(f"cache_lod0_max_tokens must be at least 0, got {self.cache_lod0_max_tokens}")
        if self.lens_keys < 0:
            raise ConfigError(f"lens_keys must be at least 0, got {self.lens_keys}")
        if self.lens_key_dim < 1:
            raise ConfigError(f"lens_key_dim must be at least 1, got {self.lens_key_dim}")


@dataclass(frozen=True)
class Appended:
    """What an append added: complete blocks.

    gist_calls: GistNet calls, one a level; more only for a document so large that it is read in parts.
    """

    first_block: int
    new_blocks: int
    gist_calls: int = 0
