"""Commands of ``gadgetron-inr``, one module each."""
