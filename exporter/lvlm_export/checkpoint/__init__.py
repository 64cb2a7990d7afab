"""A Hugging Face checkpoint on disk: which files count, and what they hold."""
