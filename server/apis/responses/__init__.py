"""/v1/responses: replies that are kept, gone on from, and streamed again."""
