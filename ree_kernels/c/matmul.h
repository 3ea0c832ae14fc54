/* C = A @ B in the `dot` order, with constant (packed) or dynamic (strided) B. */
#ifndef REE_MATMUL_H
#define REE_MATMUL_H

#include "abi.h"

/* Rows of the index space are batch * m flattened (C[row] = c + row * c_row), columns are n.
 * Strides are in floats. A's element (row, k) of a batch item lies at a + batch offset
 * + row * a_row + k * a_k. B is packed, the same for every batch item, as floats
 * (b_packed = REE_PACKED, by ree_pack_b) or as bfloat16 (REE_PACKED_BF16, by ree_pack_bf16_box), of which each element
 * stands for the float of the same value; else b is a float array whose element (k, col) lies at b + batch offset
 * + k * b_k + col * b_col.
 * With an epilogue, that function is called on sub-boxes once their C is complete and stores
 * the results itself; without, a NaN in C is canonical. */
typedef struct {
    const float *a;
    const void *b;
    float *c;
    int64_t a_row, a_k, b_k, b_col, c_row;
    int64_t m, n, k;
    int64_t b_packed;
    int64_t batch_dims; /* 0..4 */
    int64_t batch[4], a_batch[4], b_batch[4];
    ree_kernel epilogue;
    const void *epilogue_args;
} ree_matmul_args;

void ree_matmul(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* Columns of one panel of packed B, rows of the register tile, floats of a vector. */
int64_t ree_panel_cols(void);
int64_t ree_tile_rows(void);
int64_t ree_vector_floats(void);

enum { REE_PACKED = 1, REE_PACKED_BF16 = 2 };

/* Scratch that ree_matmul needs for boxes of up to this many rows; an epilogue's own comes on top. */
int64_t ree_matmul_scratch_bytes(int64_t rows, int64_t k, int64_t b_packed);

/* Floats of packed B for n columns and k rows. */
int64_t ree_pack_b_floats(int64_t n, int64_t k);

/* Pack columns [c0, c0 + cols) of B into `packed` (64-byte aligned, ree_pack_b_floats(n, k) long).
 * `source` is the slice alone: its element (k, j) lies at source[k * source_k + j * source_col]. c0 must be
 * a multiple of ree_panel_cols(), and so must cols unless the slice ends at n; padding becomes 0. */
int ree_pack_b(float *packed, int64_t n, int64_t k, int64_t c0, int64_t cols, const float *source, int64_t source_k,
               int64_t source_col);

/* The same as a kernel, so that the pool's threads share it: one row, n columns, cut at multiples of
 * ree_panel_cols(). Element (k, col) of B lies at source[k * source_k + col * source_col]. */
typedef struct {
    float *packed;
    const float *source;
    int64_t n, k, source_k, source_col;
} ree_pack_b_args;

void ree_pack_b_box(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* The same for bfloat16, 16-bit words packed as 16-bit words: ree_pack_bf16_words(n, k) of them, 64-byte aligned. */
typedef struct {
    uint16_t *packed;
    const uint16_t *source;
    int64_t n, k, source_k, source_col;
} ree_pack_bf16_args;

void ree_pack_bf16_box(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);
int64_t ree_pack_bf16_words(int64_t n, int64_t k);

#endif
