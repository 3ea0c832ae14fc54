/* Stable argsort and top-k selection along the last axis. */
#ifndef REE_SORT_H
#define REE_SORT_H

#include "abi.h"

/* x: keys, element (row, i) at row * x_row + i * x_step; out: i64 indices, element
 * (row, j) at row * out_row + j, j < k (argsort: k == n). dtype: a REE_* number of
 * dtype.h. Strides count elements. */
typedef struct {
    const void *x;
    int64_t *out;
    int64_t n, k;
    int64_t x_row, x_step, out_row;
    int64_t dtype, descending;
} ree_sort_args;

void ree_argsort(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);
void ree_argtopk(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* Scratch of both for rows of n keys. */
int64_t ree_sort_scratch_bytes(int64_t n, int64_t dtype);

#endif
