"""Camelyon16 by the published protocol."""
