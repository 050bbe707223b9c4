"""Benchmarks: each prints a table for people and ends in one JSON line; ``--save`` keeps it under bench/results/."""
