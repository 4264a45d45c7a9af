"""Combiners of several teachers; one teacher is the average of one."""
