"""What a training step costs on hardware that is elsewhere."""
