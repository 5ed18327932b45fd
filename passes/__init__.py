"""The passes: one a file, each from IR to IR."""
