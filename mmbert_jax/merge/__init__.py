"""Merging checkpoints, tensor by tensor, in NumPy."""
