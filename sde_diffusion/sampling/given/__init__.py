"""Samples that a user gives: read from files, observed in part, edited."""
