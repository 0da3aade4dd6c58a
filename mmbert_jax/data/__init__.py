"""Text to packed rows to batches. Nothing here imports jax: worker processes have to start fast."""
