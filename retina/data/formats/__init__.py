"""The formats of datasets: a file each, which holds all that knows the format."""
