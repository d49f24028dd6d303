"""LoRA adapters: PEFT folders and llama.cpp's GGUF files, read, put onto a model's linears, and written."""
