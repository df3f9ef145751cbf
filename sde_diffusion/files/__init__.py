"""Reading and writing of files that may come from others, or be met by another process at the same time."""
