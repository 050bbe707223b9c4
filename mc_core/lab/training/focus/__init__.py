"""Training of GistNet, and of the base with it, on working contexts as sessions show them."""
