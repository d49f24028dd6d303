"""Costs measured on this machine: the engine's own kernels, run on a slice of the model."""
