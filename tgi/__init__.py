"""A text-generation server for large language models on accelerator cards and CPUs."""

__version__ = "0.1.0"
