"""Least squares on all coefficients of a table, with derivatives by the adjoint of a model that has gradients."""
