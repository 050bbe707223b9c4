"""What makes gists: the shape that all networks share that do."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mc_core.errors import ConfigError

VECTORS = (1, 2, 4, 8)
"""Vectors of a gist; each divides any block size, so that each can stand for as many tokens."""


class GistMaker(nn.Module, ABC):
    """K children -> a gist of m ``vectors`` in the base model's input-embedding space, in order: each of an m-th of the
    children, unless a kind says which ones it is of. Children are tokens, or gists of m vectors each."""

    def __init__(self, dim: int, block_size: int, vectors: int) -> None:
        """ConfigError for a shape that no gist has."""
        super().__init__()
        if dim < 1:
            raise ConfigError(f"dim must be at least 1, got {dim}")
        if block_size < 2:
            raise ConfigError(f"block_size must be at least 2, got {block_size}")
        if vectors not in VECTORS or block_size % vectors or vectors == block_size:
            raise ConfigError(f"vectors must be one of {VECTORS} and divide a larger block_size, got {vectors}")
        self.dim, self.block_size, self.vectors = dim, block_size, vectors

    @property
    def width(self) -> int:
        """Numbers of a gist: its vectors side by side."""
        return self.vectors * self.dim

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, d], mask [B, T] bool (True = real; None = all are) -> gists [B, m d], their m vectors side by side.

        T: tokens, at most K, or the vectors of at most K gists; a multiple of m. What stands in masked rows changes
        nothing; a vector for which no real row is there is zero. ConfigError if T or d do not fit.
        """
        most, rows = self.vectors * self.block_size, x.shape[1]
        if rows > most or rows % self.vectors or x.shape[2] != self.dim:
            raise ConfigError(
                f"x must be [B, <= {most}, {self.dim}], rows in {self.vectors} parts, got {list(x.shape)}"
            )
        return self.make(x, mask).reshape(len(x), self.width)

    @abstractmethod
    def make(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The same of a checked x; the vectors in any shape that holds them in order."""

    def parts(self, rows: Tensor) -> Tensor:
        """rows [B, T, ...], what belongs to each vector by itself -> [B m, T / m, ...]."""
        return rows.reshape(-1, rows.shape[1] // self.vectors, *rows.shape[2:])
