"""How good a model is on a text, and how much worse than another: perplexity and divergence."""
