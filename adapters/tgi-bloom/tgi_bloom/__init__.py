"""Bloom for tgi."""
