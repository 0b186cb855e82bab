"""StableLM for tgi."""
