"""Reading checkpoints: the config, the safetensors files and what the one implies for the other."""
