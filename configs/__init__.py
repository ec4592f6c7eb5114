"""The configuration of every stage; loaded by path with `--config`."""
