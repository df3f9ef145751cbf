"""Clouds of points on surfaces that code describes."""
