"""Chain files: data of the package, no code."""
