"""Utterances: sources, shards, batches, and the loader that feeds them to the training workers."""
