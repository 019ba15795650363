"""Whisper models: loading, trimmed windows, student surgery, greedy decoding, the CTranslate2 engine."""
