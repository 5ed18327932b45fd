"""From a checkpoint to an artifact: the passes in order, weights, files, sizes, tuning."""
