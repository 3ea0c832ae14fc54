/* The executor: runs the steps of a plan on the threads of the pool. */
#ifndef REE_RUNTIME_H
#define REE_RUNTIME_H

#include "abi.h"

/* Run all steps in order; every box of a step is done before the next step starts.
 * 0, or EINVAL (a malformed step), ENOMEM (scratch), EAGAIN (a thread could not start). */
int ree_run(const ree_step *steps, int64_t n_steps);

/* A step kernel that runs the boxes of two steps, which must not depend on one another, as one: rows 1, a column for
 * each box (`ree_pair_boxes`), those of `first` first; args is a ree_pair. Threads need not wait between the two. */
typedef struct {
    ree_step first, second;
} ree_pair;
void ree_both(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);
int64_t ree_pair_boxes(const ree_pair *pair);

/* Set the number of threads (the caller's included) of later runs; 0 or EINVAL. */
int ree_set_threads(int64_t n_threads);
int64_t ree_get_threads(void);

/* Memory for packed weights: 64-byte aligned, from 2 MiB on in huge pages where there are any. NULL: none left. */
void *ree_alloc(int64_t bytes);
void ree_free(void *memory);

/* Whether this processor (and operating system) has a named instruction set. */
int ree_cpu_has(const char *isa);

/* The raw floating-point control word of this thread (MXCSR, FPCR, fcsr), and setting it; ree_fp_enter sets the
 * default state that kernels run in and returns the one before. */
uint64_t ree_fp_state(void);
uint64_t ree_fp_enter(void);
void ree_set_fp_state(uint64_t state);

/* A step kernel that stores (thread's control word, box) for tests of the pool:
 * args is a ree_trace; slot (row, col) of `out` counts how often it was run. */
typedef struct {
    int32_t *out;
    int64_t cols;
    uint64_t *fp_state;
    int64_t spin;
} ree_trace;
void ree_trace_kernel(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

#endif
