"""The model, written once, and the tracer that records it as IR."""
