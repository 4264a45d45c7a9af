"""Combiners of several teachers."""
