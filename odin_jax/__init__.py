"""ODIN in JAX: train, evaluate, generate, reconstruct."""
