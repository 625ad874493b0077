"""Training: how a model moves, and where the next data comes from."""
