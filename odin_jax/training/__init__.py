"""Training: the pure step, warm starts, settings, the journal."""
