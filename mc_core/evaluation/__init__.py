"""Suites that prove memory, beside baselines at the same budget: what was found, what was answered, what it is worth."""
