"""Compatible representation learning with d-Simplex fixed classifiers, in JAX."""
