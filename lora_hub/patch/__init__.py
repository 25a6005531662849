"""Locate projections, attach A and B to them, run, merge, train, save. Needs torch; never opens a socket."""
