"""Strings to token ids and back; no trio, no torch, no HTTP."""
