"""The optimiser and its schedules, all in tokens."""
