"""Checkpoints of other projects: which of their tensors is which of ours."""
