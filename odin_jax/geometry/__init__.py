"""Camera paths, and geometry from views whose poses are known."""
