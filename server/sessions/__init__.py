"""Sessions of one server: found, opened, held by one user at a time, kept within bounds, and given up."""
