"""Observation of a training run: its cost beforehand, samples and held-out loss during it, one page of both."""
