"""Images while the scan runs: receiver, solver, refinement and sender, and what is done when the machine is too slow."""
