"""Conditions that are made of the data themselves, for networks of restoration tasks."""
