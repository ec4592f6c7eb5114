"""Posed views -> a scene of 3D Gaussians, by a renderer in plain XLA."""
