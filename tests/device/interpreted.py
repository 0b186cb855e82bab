"""Lets Triton interpret kernels on the CPU in the process that imports this module; skips without Triton.

Triton comes with a GPU's torch and is large, so most machines lack it. On a machine with a GPU it stays as it
is, for test_gpu.py: Triton interprets everything in a process or nothing.
"""

import os

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("there is a GPU", allow_module_level=True)
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
pytest.importorskip("triton")

import triton.runtime.interpreter as interpreter

_patch = interpreter._patch_lang_tensor


def _count_with_arrays(tensor, scope):
    """Triton 3.6 makes int() of arrays [1], which numpy 2.4 refuses, where a kernel counts up to a tensor."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _count_with_arrays
