"""Granite 3, dense and with experts, for tgi."""
