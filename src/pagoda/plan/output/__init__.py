"""A plan as JSON with reasons, and as a picture."""
