"""Steps over a paged cache, sampling, generation."""
