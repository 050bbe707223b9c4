"""Training of the project's own base model: tokenizer, data, tasks, trainer, evaluation and export."""
