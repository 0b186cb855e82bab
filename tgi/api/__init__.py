"""HTTP: requests become sequences, tokens become answers. Knows requests and text, never a tensor."""
