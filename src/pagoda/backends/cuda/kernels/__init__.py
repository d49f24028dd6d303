"""Triton kernels, an idea a file: the kernel, and a function that checks nothing and launches it."""
