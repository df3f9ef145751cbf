"""Cascades: a model of small images, then models that enlarge what the one before has drawn (Ho et al. 2022)."""
