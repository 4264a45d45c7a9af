"""Sequence-to-sequence tasks."""
