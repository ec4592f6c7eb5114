"""Scenes from images in a browser: jobs, their files, routes and a page."""
