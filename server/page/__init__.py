"""The page for people: files that a browser takes as they are, without a build step."""
