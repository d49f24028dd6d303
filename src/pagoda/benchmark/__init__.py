"""Measuring: the engine itself (`engine`), and any OpenAI-compatible server under load (`load`)."""
