"""The preflight: faults of the data, and the boxes that the anchors can learn, before the first step."""
