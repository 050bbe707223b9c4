"""Who follows sessions while they change, and what they are told."""
