"""Commitments to what a program computed: hashes, trees, traces, receipts."""
