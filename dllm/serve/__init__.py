"""A server: many requests share one model, and the batch that it decodes."""
