"""Messages to token ids by the model's own chat template."""
