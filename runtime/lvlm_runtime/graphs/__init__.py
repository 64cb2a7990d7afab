"""ONNX files are read here, without the onnx package."""
