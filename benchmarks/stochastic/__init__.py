"""The default stochastic solver against the others, by the quality of samples."""
