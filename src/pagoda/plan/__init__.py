"""What fits this machine, and how fast it can be."""
