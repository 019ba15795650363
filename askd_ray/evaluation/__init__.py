"""Scores, confidence intervals and latency of teacher and student."""
