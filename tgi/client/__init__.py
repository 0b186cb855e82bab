"""Programs that talk to a server: `tgi.LLM`, `tgi chat`, `tgi bench`, `tgi run-batch`."""
