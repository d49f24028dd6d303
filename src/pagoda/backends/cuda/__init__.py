"""The CUDA backend: torch for memory and dense products, Triton for the rest, CUDA graphs for decoding.

`backend.py` loads a model; `program.py` turns its recorded forward pass into fused steps over `ops.py`, of which there
are two: `eager.py` in torch alone, which runs anywhere, and `fast.py`, which launches the kernels of `kernels/`.
Nothing here is imported, and torch with it, before somebody asks for the device.
"""
