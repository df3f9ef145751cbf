"""Strengths of noise for a tuned solver, chosen by a distance of laws."""
