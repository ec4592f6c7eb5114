"""Posed panoramas -> pairs of perspective views that share enough."""
