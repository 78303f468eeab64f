"""Whole slides: reading at a scale, tissue, annotations, patches."""
