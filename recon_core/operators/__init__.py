"""Linear operators of the signal equation and their normal operators."""
