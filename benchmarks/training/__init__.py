"""Training: throughput, combinations of settings, and the quality of what they give."""
