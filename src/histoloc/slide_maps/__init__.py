"""A model on a whole slide: tiles, their evidence in a file, one map stitched from it, and what is written of it."""
