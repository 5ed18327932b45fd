"""ONNX Runtime as a device."""
