"""The detector: backbone, feature pyramid, heads, objective and decoding, on `keras` and `keras.ops` only."""
