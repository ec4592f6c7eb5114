"""Experiments: what is varied, how its cells are made, what they say."""
