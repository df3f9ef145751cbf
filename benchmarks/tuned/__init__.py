"""Tuned solvers on other ranges, what their coefficients may do, and their samples by features."""
