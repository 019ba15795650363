"""The results of an evaluation: what their records hold, and how they are written in texts."""
