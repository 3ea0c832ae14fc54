/* C = A @ B of bytes in 32-bit integers, exact modulo 2^32, with constant (packed) B. */
#ifndef REE_MATMUL_I8_H
#define REE_MATMUL_I8_H

#include "abi.h"

/* Rows of the index space are m, columns are n. A's element (row, k) lies at a[row * a_row + k], C's at
 * c[row * c_row + col]; strides are in elements. A's bytes are uint8 if a_unsigned is set. */
typedef struct {
    const int8_t *a;
    const int8_t *b; /* packed: ree_pack_b_i8_box */
    int32_t *c;
    int64_t a_row, c_row;
    int64_t m, n, k;
    int64_t a_unsigned;
} ree_matmul_i8_args;

void ree_matmul_i8(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* The same without instructions that only some processors of the instruction set have. */
void ree_matmul_i8_pairs(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* Columns of one panel of packed B; the most rows that B is read once for, front to back. */
int64_t ree_panel_i8_cols(void);
int64_t ree_tile_i8_rows(void);

/* Scratch of either function for boxes of up to this many rows. */
int64_t ree_matmul_i8_scratch_bytes(int64_t rows, int64_t k);

/* Bytes of packed B for n columns and k rows. */
int64_t ree_pack_b_i8_bytes(int64_t n, int64_t k);

/* Packs B as a kernel, so that the pool's threads share it: one row, n columns, cut at multiples of
 * ree_panel_i8_cols(). Element (k, col) of B lies at source[k * source_k + col * source_col]. `packed` is 64-byte
 * aligned and ree_pack_b_i8_bytes(n, k) long. */
typedef struct {
    int8_t *packed;
    const int8_t *source;
    int64_t n, k, source_k, source_col;
} ree_pack_b_i8_args;

void ree_pack_b_i8_box(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

#endif
