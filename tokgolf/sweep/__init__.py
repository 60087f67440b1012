"""Sweeps: grids of idempotent, resumable cells in one store, on whatever runs them."""
