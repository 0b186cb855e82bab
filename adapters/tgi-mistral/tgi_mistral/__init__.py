"""Mistral and Mistral-Nemo for tgi."""
