"""Command R and A for tgi."""
