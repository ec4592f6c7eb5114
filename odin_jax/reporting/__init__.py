"""The folders of a run -> its figures, its verdict and what its page shows."""
