"""Text: tokens, normalisation, error rates."""
