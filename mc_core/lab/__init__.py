"""Research: memory tasks, training, evaluation and the step-by-step facade. Nothing that serves imports it."""
