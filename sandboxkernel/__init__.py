"""Jupyter kernels that each run in their own Linux container."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
