"""askd-ray: distil Whisper on a Ray cluster with adaptive self-knowledge distillation, evaluate and serve it."""

__version__ = "0.1.0"
