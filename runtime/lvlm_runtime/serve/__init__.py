"""A server for bundles: OpenAI's chat API, with a budget or a latency goal per request."""
