"""Real weights and real speech without a hub: fetched once, hash-checked, offline afterwards."""
