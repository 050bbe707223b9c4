"""Tasks that need memory: made-up episodes, for training and for evaluation."""
