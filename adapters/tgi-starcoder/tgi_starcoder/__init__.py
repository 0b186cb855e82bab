"""StarCoder 1 and 2 for tgi."""
