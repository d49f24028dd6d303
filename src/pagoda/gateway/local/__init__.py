"""Several models on one machine: each is an engine in a process of its own, an upstream that comes when asked for."""
