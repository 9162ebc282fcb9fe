"""Weights of other ecosystems: files read without running any code in them, mapped tensor by tensor, and reported.

`reading` opens a file, `mapping` carries tensors over by rules and accounts for each; one module for each ecosystem
holds its names and its conventions.
"""
