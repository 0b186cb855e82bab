"""MPT for tgi."""
