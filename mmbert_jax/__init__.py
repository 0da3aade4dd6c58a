"""Pre-training of massively multilingual encoders in JAX: mmBERT's recipe from text to `transformers`."""
