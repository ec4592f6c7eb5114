"""Matched points -> poses: the parts that `solver` puts together."""
