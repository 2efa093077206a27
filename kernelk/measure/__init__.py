"""Recording, timing, comparison, profile, divergence, estimates, results."""
