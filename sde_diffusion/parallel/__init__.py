"""Several processes: those that a launcher started, and a pool that shares work over them."""
