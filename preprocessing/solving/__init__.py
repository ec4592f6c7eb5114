"""Matched points -> poses: the parts that `poses` puts together."""
