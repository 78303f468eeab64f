"""Drawn images with labels and masks."""
