"""The bundle: an exported student that every engine loads."""
