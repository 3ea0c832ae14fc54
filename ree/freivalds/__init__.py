"""Freivalds' check: an exact integer product is verified in less time than it takes to compute it."""
