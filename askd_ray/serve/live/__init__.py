"""Live captions over a WebSocket: OpenAI's realtime transcription API."""
