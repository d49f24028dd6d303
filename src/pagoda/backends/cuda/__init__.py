"""The CUDA backend: torch for memory and dense products, Triton for the rest, CUDA graphs for decoding.

`backend.py` loads a model; `program.py` emits the fused nodes of its forward pass as steps over the ops of `eager.py`,
which are torch alone and run anywhere, or of `fast.py`, which launches the kernels of `kernels/` where there is one.
Nothing here is imported, and torch with it, before somebody asks for the device.
"""
