"""Panoramas as records -> pairs of views, cut as they are asked for."""
