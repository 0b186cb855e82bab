"""Phi 1 to 4 and Phi-MoE for tgi."""
