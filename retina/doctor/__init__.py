"""The preflight: what is wrong with the data, and what the anchors can make of it, before the first step."""
