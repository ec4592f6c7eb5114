"""Checkpoints: of a run, of other projects, and one array at a time."""
