"""Clouds of points: distances and scores of sets of clouds, voxels, and a differentiable renderer."""

from sde_diffusion.points.metrics import CloudScores, chamfer, score_clouds
from sde_diffusion.points.rendering import render
from sde_diffusion.points.voxels import to_voxels

__all__ = ["CloudScores", "chamfer", "render", "score_clouds", "to_voxels"]
