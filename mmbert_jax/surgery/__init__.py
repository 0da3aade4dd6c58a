"""Models made out of other models: a smaller vocabulary, a smaller shape."""
