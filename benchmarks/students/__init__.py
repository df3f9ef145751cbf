"""Students of few evaluations beside solvers of their teachers."""
