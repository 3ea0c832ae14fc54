"""Spot checks: a proof that opens some elements, drawn at random, with all that they were computed from."""
