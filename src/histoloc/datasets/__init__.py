"""Data sets: each module turns one into a table."""
