"""What the teacher says: soft labels, computed once and kept beside the shards."""
