"""Where requests go among replicas: in `pagoda gateway`, and in the planner's simulation of a fleet."""
