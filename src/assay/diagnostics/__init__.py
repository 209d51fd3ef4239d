"""What the numbers of a run mean: verdict and warning signs, from tables alone (no model, no torch)."""
