"""Pure tensor maths on NumPy and `keras.ops`: boxes, anchors, assignment, non-maximum suppression."""
