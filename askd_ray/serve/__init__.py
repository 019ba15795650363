"""The service: an OpenAI-compatible endpoint on Ray Serve."""
