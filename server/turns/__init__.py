"""Turns on sessions: what a conversation holds, how it is found again, and the tasks that run it."""
