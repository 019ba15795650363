"""Exports a student as a bundle that every engine loads."""
