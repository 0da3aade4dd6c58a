"""From and to the Hugging Face formats: weights, config.json, tokeniser."""
