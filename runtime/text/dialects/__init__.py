"""Tool calls and thoughts, as the models of this family write them."""
