"""Compiles the kernels while the package is built: for this processor, or for all with TGI_KERNELS=all."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


def _load_build() -> Any:
    """Import build.py without its package, which needs torch."""
    path = Path(__file__).parent / "tgi_cpu_kernels" / "build.py"
    spec = importlib.util.spec_from_file_location("tgi_cpu_kernels_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_py):
    """Compiles first. Without a compiler the package is installed empty, and says so when it is loaded."""

    def run(self) -> None:
        """Compile, then copy the package."""
        kernels = _load_build()
        names = list(kernels.TARGETS) if os.environ.get("TGI_KERNELS") == "all" else kernels.wanted()
        try:
            kernels.build(names)
        except kernels.BuildError as error:
            print(f"tgi-cpu-kernels is installed without kernels: {error}", file=sys.stderr)
        super().run()


class Wheel(bdist_wheel):
    """A wheel for every Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag."""
        return "py3", "none", super().get_tag()[2]


class Platform(Distribution):
    """A distribution that depends on the platform."""

    def has_ext_modules(self) -> bool:
        """Return True: there are libraries in the package."""
        return True


setup(cmdclass={"build_py": BuildKernels, "bdist_wheel": Wheel}, distclass=Platform)
