"""The commands of ``megacontext``; each imports what it needs only when it runs."""
