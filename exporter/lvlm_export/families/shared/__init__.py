"""What families of LLaVA's kind have in common."""
