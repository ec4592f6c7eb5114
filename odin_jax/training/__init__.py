"""Training: the pure step, warm starts, settings, and what is watched of it."""
