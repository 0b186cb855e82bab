"""Conversion between strings and token ids, without trio, torch or HTTP."""
