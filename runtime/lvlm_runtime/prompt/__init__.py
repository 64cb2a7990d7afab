"""From a question to token ids, and from logits to the next token."""
