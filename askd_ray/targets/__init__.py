"""Training targets from the teacher: soft labels and pseudo-labels, computed once and stored beside the shards."""
