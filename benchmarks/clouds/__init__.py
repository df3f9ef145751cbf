"""Clouds of points: how near generated sets come to the data, and a cloud drawn by score distillation."""
