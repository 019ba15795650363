"""The transcription service: an OpenAI-compatible HTTP API on Ray Serve."""
