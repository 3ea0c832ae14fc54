"""Proof that a second device gives the processor's bits: every kernel and whole models, against committed digests."""
