"""Attention over key ranges and the vocabulary-chunked loss; imports nothing but jax and numpy."""
