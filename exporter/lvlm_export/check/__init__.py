"""The chain against PyTorch: the gate that every bundle passes."""
