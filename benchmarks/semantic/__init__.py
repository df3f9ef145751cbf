"""Diffusion autoencoders: what the codes of images hold."""
