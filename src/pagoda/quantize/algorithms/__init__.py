"""Rounding a weight: GPTQ, AWQ, NF4, INT8, and the refinement of what they make."""
