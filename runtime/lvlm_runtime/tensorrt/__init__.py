"""TensorRT and CUDA through their Python bindings."""
