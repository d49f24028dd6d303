"""Hugging Face folders, quantized or of plain floats."""
