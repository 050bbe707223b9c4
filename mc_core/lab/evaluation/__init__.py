"""Suites that prove memory, beside baselines at the same budget: what is found, what is answered, what it is worth."""
