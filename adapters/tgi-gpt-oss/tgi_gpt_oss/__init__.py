"""gpt-oss for tgi."""
