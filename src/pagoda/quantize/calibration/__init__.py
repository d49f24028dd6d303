"""A model's forward pass over a sample of text, and what quantizers learn from it."""
