"""The loop of a training and what keeps it safe: processes, guards, validation, running mean."""
