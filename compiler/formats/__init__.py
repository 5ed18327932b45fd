"""Weight formats: rounding, decoding, and the layouts in which they are packed."""
