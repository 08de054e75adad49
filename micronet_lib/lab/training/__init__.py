"""The training loop, its step, and the rating of a network."""
