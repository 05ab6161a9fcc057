"""Fields: coordinates, and what conditions them, to signal."""
