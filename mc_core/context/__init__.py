"""The working context: the entries that tile a history within a budget, and the plans that edit them."""
