"""What a run directory is: its files, checkpoints and environment, and a detector loaded from it."""
