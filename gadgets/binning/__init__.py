"""Readouts to frames: pure functions of times and indices."""
