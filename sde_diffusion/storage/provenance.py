"""Versions of the software that made a result."""

from __future__ import annotations

from importlib import metadata

import torch


def versions() -> dict[str, str]:
    """The versions that may change a result."""
    try:
        own = metadata.version("sdediff")
    except metadata.PackageNotFoundError:  # run from a source folder
        own = "unknown"
    return {"sdediff": own, "torch": torch.__version__}
