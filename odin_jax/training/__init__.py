"""Training: sharding, the pure step, checkpoints."""
