"""What schedules reckon with: a multiprocessor's rates and room. They tell choices apart; no bit depends on them.

None was measured: they are those of an H100's data sheet, or guesses.
"""

from __future__ import annotations

FMAS_PER_CLOCK = 128  # of a multiprocessor
L2_BYTES_PER_CLOCK = 24  # of a multiprocessor, from the L2 cache
LAUNCH_CLOCKS = 3000
RESERVED_BYTES = 1024  # of shared memory, for each block
SUMS_BYTES_MAX = 1 << 28  # of chunk sums that wait in memory
