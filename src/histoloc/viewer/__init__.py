"""Slides and images with what the models say of them, in the browser."""
