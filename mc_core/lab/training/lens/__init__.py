"""Training of LensNet: keys and queries that find a fact in a long history, and scores of entries."""
