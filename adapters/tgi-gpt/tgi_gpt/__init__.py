"""GPT-2, GPT-J and GPT-NeoX for tgi."""
