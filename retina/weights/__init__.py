"""Weights of other ecosystems: files read without running any code in them, mapped tensor by tensor, and reported.

`tensor_file` and `keras_file` open a file, `mapping` carries tensors over by rules and accounts for each; a module for
each ecosystem holds its names and its conventions, and `sources` brings them together.
"""
