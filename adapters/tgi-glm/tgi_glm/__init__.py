"""GLM for tgi."""
