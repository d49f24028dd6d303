"""GGUF files of block formats, from GGUF files and Hugging Face folders."""
