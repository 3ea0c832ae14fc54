"""Disputes: two claims about one run, or one claim against itself, down to a step that a referee redoes."""
