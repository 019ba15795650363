"""Audio bytes to waveforms to log-mel features."""
