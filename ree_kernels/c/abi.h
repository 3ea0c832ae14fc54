/* The one calling convention of every kernel, hand-written or JIT-compiled.
 *
 * A kernel computes the box rows [r0, r1) x columns [c0, c1) of its output and nothing
 * else, so that any split into boxes, by any number of threads, gives the same bits.
 * Columns are the innermost axis of the index space; rows are all other axes, flattened in
 * C order. `scratch` is 64-byte aligned memory of the calling thread, `scratch_bytes` long.
 */
#ifndef REE_ABI_H
#define REE_ABI_H

#include <stdint.h>

typedef void (*ree_kernel)(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1,
                           void *scratch);

/* One step of a plan: the pool cuts rows x columns into boxes of row_grain x col_grain. */
typedef struct {
    ree_kernel kernel;
    const void *args;
    int64_t rows, cols;
    int64_t row_grain, col_grain;
    int64_t scratch_bytes;
} ree_step;

/* Arguments of a JIT-compiled kernel (ree/element/llvm.py).
 * pointers: inputs, then outputs; params: the program's parameters, the extents of the
 * index space, then for each pointer its stride along each of its axes, in elements;
 * status: set to 1 where `bound` fails (any thread may store it). */
typedef struct {
    void **pointers;
    const int64_t *params;
    int64_t *status;
} ree_jit_args;

#endif
