"""Whisper models: loading, trimmed windows, building students, greedy decoding, the CTranslate2 engine."""
