"""``megacontext load``: put a server under load over HTTP and report what its clients saw."""
