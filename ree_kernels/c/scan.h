/* Prefix sums, products, maxima and minima along one axis. */
#ifndef REE_SCAN_H
#define REE_SCAN_H

#include "abi.h"

enum { REE_CUMSUM, REE_CUMPROD, REE_CUMMAX, REE_CUMMIN };

/* Slices are numbered by (row, col); element k of a slice lies at
 * row * x_row + col * x_col + k * x_step, in elements; `out` and `indices` (i64, only for
 * cummax and cummin; may be NULL, as may out) share their strides. */
typedef struct {
    const void *x;
    void *out;
    int64_t *indices;
    int64_t n;
    int64_t x_row, x_col, x_step;
    int64_t out_row, out_col, out_step;
    int64_t op, dtype;
} ree_scan_args;

void ree_scan(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

#endif
