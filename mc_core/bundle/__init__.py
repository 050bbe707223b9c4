"""A bundle: a base model, the networks trained for it, and how they want to be run."""
