"""Merging models tensor by tensor, in NumPy: `models` reads them, `recipe` merges, `output` writes."""
