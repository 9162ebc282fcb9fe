"""Exports that score what the checkpoint scores: SavedModel, ONNX, LiteRT, and the certificate that proves it."""
