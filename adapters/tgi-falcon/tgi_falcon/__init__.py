"""Falcon 1 and 2 of every size for tgi."""
