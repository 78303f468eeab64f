"""Recipes: one YAML for each published table cell or good default."""
