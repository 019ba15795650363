"""Divergences between distributions over tokens, of the vocabulary or of buckets of it."""
