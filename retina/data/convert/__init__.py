"""Datasets from one format into another: a plan from the table, writers that stream, and a check of the outcome."""
