"""Builds the C kernels of `ree_kernels` at installation; everything else is in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # an isolated build does not have it

from ree_kernels.build import RUNTIME, SOURCES, builder, isas

directory = Path(os.path.relpath(SOURCES))  # setuptools wants paths relative to this file's
setup(ext_modules=[builder(module, directory).distutils_extension() for module in [RUNTIME, *isas()]])
