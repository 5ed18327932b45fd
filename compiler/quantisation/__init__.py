"""How weights are rounded: which formats they get."""
