"""From a plan and torch modules to ONNX graphs."""
