"""Solvers: one file a method, found by name through :mod:`recon_core.solvers.registry`."""
