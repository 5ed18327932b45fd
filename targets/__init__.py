"""The targets: one folder each, looked up by name."""
