"""Parts of the command `preprocessing.download`."""
