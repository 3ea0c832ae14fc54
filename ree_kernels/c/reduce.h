/* Reductions of an axis that is not the innermost: sums, maxima, minima of columns. */
#ifndef REE_REDUCE_H
#define REE_REDUCE_H

#include "abi.h"

enum { REE_REDUCE_SUM, REE_REDUCE_MAX, REE_REDUCE_MIN };

/* out[row, col] = fold over k < n of x[row, k, col], in the order of sum.h (max and min have none): +0, -inf or
 * +inf if n is 0. Columns are contiguous; the other strides are in floats. A NaN stored is canonical. */
typedef struct {
    const float *x;
    float *out;
    int64_t n;
    int64_t x_row, x_k, out_row;
    int64_t op;
} ree_reduce_args;

void ree_reduce_columns(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* Scratch of ree_reduce_columns for folds of length n. */
int64_t ree_reduce_scratch_bytes(int64_t n);

#endif
