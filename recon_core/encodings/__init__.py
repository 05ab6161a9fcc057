"""Encodings of coordinates: features a small network can turn into an image."""
