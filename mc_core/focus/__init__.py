"""What matters now: lenses, the look-ahead over all blocks, allocators and the refocus cycle."""
