"""Evaluation: a dataset's table and a table of detections in, figures out. It knows no model."""
