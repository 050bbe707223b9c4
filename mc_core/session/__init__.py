"""Sessions: tree, working context, lens and slab as one; made new, or restored from a store."""
