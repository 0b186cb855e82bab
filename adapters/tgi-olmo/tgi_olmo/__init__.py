"""OLMo 2 and 3 and OLMoE for tgi."""
