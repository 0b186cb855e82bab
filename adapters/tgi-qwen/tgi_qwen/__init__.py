"""Qwen 2, 2.5 and 3, dense and with experts, for tgi."""
