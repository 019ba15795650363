"""Utterances: sources, shards, batches, and the stream that carries them to the training workers."""
