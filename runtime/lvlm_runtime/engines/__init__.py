"""TensorRT engines of a bundle: which, built how, and whether they still fit."""
