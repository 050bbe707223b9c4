"""Commands of the lab: train, evaluate, ablate. Nothing that serves imports them."""
