"""The fit of the tables of `pf-ode`."""
