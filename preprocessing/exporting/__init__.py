"""Solved videos -> folders that other tools open."""
