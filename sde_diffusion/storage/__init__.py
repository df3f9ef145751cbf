"""Files of runs: checkpoints, sample records, tuned solvers; written whole or not at all."""
