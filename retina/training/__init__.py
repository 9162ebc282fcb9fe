"""The run: step, schedule, checkpoints, run directory, progress."""
