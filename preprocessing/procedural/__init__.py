"""Worlds with exact poses, depth and motion."""
