"""Matrix units of GPUs, and the products that are made on them."""
