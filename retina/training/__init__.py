"""Training of a run: the loop with its steps, evaluations and checkpoints, on one device or many."""
