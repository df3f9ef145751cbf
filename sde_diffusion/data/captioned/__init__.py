"""Data with captions: two digits in one image, and captions in a text file."""
