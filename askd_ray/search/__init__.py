"""The hyperparameter search over schedules and weights with Ray Tune."""
