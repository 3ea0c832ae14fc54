/* Rows times one of several constant matrices, which each row chooses: the layers of a mixture of experts. */
#ifndef REE_EXPERTS_H
#define REE_EXPERTS_H

#include "abi.h"

/* out[s, o] = dot over i < k of x[s, i] and the o-th column of matrix expert[s], for s < rows and o < n.
 * x's element (s, i) lies at x + s * x_row + i * x_k, a row's expert at expert + s * expert_step, its result at
 * out + s * out_row; w holds the matrices of `experts` experts one after another, each packed as floats by ree_pack_b
 * (w_packed = REE_PACKED) or as bfloat16 by ree_pack_bf16_box (REE_PACKED_BF16).
 * Rows of the index space are not s, but positions: within every block of REE_EXPERTS_BLOCK rows, the rows in the
 * order of their experts, so that rows of one expert are neighbours. Columns are n. A row whose expert is outside
 * 0 .. experts - 1 is not written, and *status becomes 1. */
typedef struct {
    const float *x;
    const int64_t *expert;
    const void *w;
    float *out;
    int64_t *status;
    int64_t x_row, x_k, expert_step, out_row;
    int64_t rows, n, k, experts, w_packed;
} ree_experts_args;

void ree_experts(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* Rows of one block, a multiple of which a box should hold where it holds more than one block. */
int64_t ree_experts_block(void);

/* Scratch for boxes of up to so many rows and columns. */
int64_t ree_experts_scratch_bytes(int64_t rows, int64_t cols, int64_t k, int64_t experts, int64_t w_packed);

#endif
