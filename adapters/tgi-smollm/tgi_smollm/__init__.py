"""SmolLM3 for tgi."""
