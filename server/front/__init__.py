"""What a request meets before its API: names, keys, limits; and how errors are answered."""
