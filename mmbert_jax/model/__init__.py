"""ModernBERT's encoder and its heads in Flax NNX; imports nothing but jax, flax, numpy and the kernels."""
