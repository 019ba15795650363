"""The training loop, its checkpoints, and the Ray Train workers that run it."""
