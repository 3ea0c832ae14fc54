"""Bounds on everything that comes from outside."""

from __future__ import annotations

RANK_MAX = 12
NODES_MAX = 1_000_000
TENSOR_BYTES_MAX = 1 << 40
HEADER_BYTES_MAX = 256 << 20
NAME_BYTES_MAX = 4096
NESTING_MAX = 32
THREADS_MAX = 256
BINDINGS_CACHED_MAX = 32  # plans that a dynamic program keeps
FOLDED_BYTES_MAX = 64 << 20  # constant folding keeps no larger tensor
PROGRAM_ENTRY_BYTES_MAX = 256 << 20  # the cache keeps no program of which it would hold more itself
PROGRAMS_CACHED_BYTES_MAX = 1 << 30
RECEIPT_BYTES_MAX = 16 << 10
RECEIPT_TEXT_BYTES_MAX = 128  # of a text that a receipt states
GENERATION_RECEIPT_BYTES_MAX = 16 << 20
GENERATED_TOKENS_MAX = 1 << 17  # of one generation; their receipt fits the bound above
STOP_TOKENS_MAX = 1024  # different tokens that may end a generation
KEY_FILE_BYTES_MAX = 16 << 10
KEPT_BYTES_MAX = 4 << 30  # of results that a run keeps in memory; more go to a file without a name
ELEMENT_VALUES_MAX = 1 << 17  # of one element program, so that fusion cannot explode
PROOF_BYTES_MAX = 1 << 30
PROOF_SAMPLES_MAX = 1 << 20
PROOF_WORK_MAX = 1 << 32  # instructions that a check may cost
SEQUENCES_MAX = 1024  # that an engine holds at once
STEP_ROWS_MAX = 512  # tokens that one step of an engine feeds
