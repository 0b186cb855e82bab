"""A text-generation server for large language models on Intel Gaudi, CUDA and CPU."""

__version__ = "0.1.0"
