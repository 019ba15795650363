"""Recipes: a whole run as one YAML file, checked before anything starts."""
