"""Using a trained model: vectors of texts, and filling masks."""
