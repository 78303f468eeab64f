"""A model on a whole slide: tiles, evidence kept in a file, one map stitched from it, and what is written for others."""
