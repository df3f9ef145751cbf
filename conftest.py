"""Doctests of modules for other libraries are collected where these are installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

INTEROP = Path(__file__).parent / "sde_diffusion" / "interop"

collect_ignore = (
    [] if find_spec("diffusers") else [str(p) for p in INTEROP.glob("*.py") if "diffusers import" in p.read_text()]
)
