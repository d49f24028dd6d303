"""A fleet of replicas, simulated from a request log with the planner's step times."""
