"""Gemma 1 to 3 for tgi."""
