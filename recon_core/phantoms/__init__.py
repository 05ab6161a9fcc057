"""Simulated objects and scans, made without inverse crime."""
