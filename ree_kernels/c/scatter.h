/* Scatter: out[target] op= src for source positions ascending. */
#ifndef REE_SCATTER_H
#define REE_SCATTER_H

#include "abi.h"

enum { REE_SET, REE_ADD, REE_MUL, REE_MIN, REE_MAX };
enum { REE_SCATTER_AXES = 8 };

/* One axis: out[.., index[.., k, ..], ..] op= src[.., k, ..], k ascending. Slices are all
 * other axes of the index tensor: `shape` their extents (the last one is the box's columns,
 * the others, flattened in C order, its rows; rank >= 1, a slice axis of 1 where there is
 * none), the strides of each tensor along them in elements, then along the scatter axis
 * (_step). n: extent of the index along the axis; extent: that of out. out holds the input.
 * An index outside -extent .. extent-1 writes nothing and sets *status to 1. */
typedef struct {
    void *out;
    const int64_t *index;
    const void *src;
    int64_t *status;
    int64_t n, extent, rank;
    int64_t shape[REE_SCATTER_AXES];
    int64_t out_stride[REE_SCATTER_AXES], index_stride[REE_SCATTER_AXES], src_stride[REE_SCATTER_AXES];
    int64_t out_step, index_step, src_step;
    int64_t op, dtype;
} ree_scatter_axis_args;

/* Rows: out[index[i], :] op= src[i, :], i ascending. The box is of `out` (extent rows,
 * inner contiguous columns); src rows are src_row elements apart (0 repeats one row), their
 * elements src_col apart (0 or 1). */
typedef struct {
    void *out;
    const int64_t *index;
    const void *src;
    int64_t *status;
    int64_t n, extent, out_row, src_row, src_col, index_step;
    int64_t op, dtype;
} ree_scatter_rows_args;

void ree_scatter_axis(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);
void ree_scatter_rows(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

#endif
