"""InternLM 2 and 3 for tgi."""
