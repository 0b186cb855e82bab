"""One rank: executes the steps that the server sends, and decides nothing. Knows token ids, not text."""
