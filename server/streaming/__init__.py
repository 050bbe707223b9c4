"""How the turns of a request are told to its client, whatever its API: pieces of a reply, frames, and the response."""
