"""Sweeps: many runs of the two programs, from a command line or a file to tables and plots."""
