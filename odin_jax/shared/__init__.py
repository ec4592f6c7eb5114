"""What preprocessing and training share; imports neither torch nor jax."""
