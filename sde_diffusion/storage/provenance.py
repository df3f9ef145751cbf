"""Versions of the software that made a result."""

from __future__ import annotations

from importlib import metadata


def versions() -> dict[str, str]:
    """The versions that may change a result."""
    return {name: _version(name) for name in ("sdediff", "torch")}


def _version(name: str) -> str:
    """The version of an installed package; it is not imported for that."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # run from a source folder
        return "unknown"
