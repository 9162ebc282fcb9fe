"""The commands: each parses, calls one function, prints. `retina.cli` gathers them."""
