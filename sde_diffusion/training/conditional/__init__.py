"""Training with conditions, and of classifiers."""
