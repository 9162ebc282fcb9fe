"""Run directories: their files, checkpoints and environment, and the loading of a detector from them."""
