"""The dataset table, one file per source, and the input pipeline."""
