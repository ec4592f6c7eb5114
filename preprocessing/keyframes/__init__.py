"""Frames of a video -> the keyframes worth solving, and what moves in them."""
