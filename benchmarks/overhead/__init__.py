"""Overhead of a solver beside the calls of its network."""
