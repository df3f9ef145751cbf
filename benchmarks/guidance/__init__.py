"""Benchmark of guided samples: python -m benchmarks.guidance."""
