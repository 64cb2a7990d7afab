"""Checkpoint to bundle: token reduction, ONNX subgraphs, shared weights. Needs torch."""

__version__ = "0.1.0"
