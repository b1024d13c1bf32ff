"""Clips: which frames of a video they are, how they are read, and synthetic ones to learn from."""
