"""Comparisons with other libraries; not part of the package."""
