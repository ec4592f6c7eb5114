"""One image and a path -> views: input, path, order, outputs."""
