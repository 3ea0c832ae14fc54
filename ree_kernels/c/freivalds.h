/* Random linear combinations modulo p = 2^61 - 1: the arithmetic of Freivalds' check (ree/freivalds/product.py). */
#ifndef REE_FREIVALDS_H
#define REE_FREIVALDS_H

#include "abi.h"

/* For two vectors r below p: out[i, col] = sum over rows of r[i, row] * v[row, col], modulo p.
 *
 * v: int8 if v_is_i8, else int32, element (row, col) at v[row * v_row + col]; out: [2, cols].
 * parts: [rows, 2, 3], bits 0-20, 21-41 and 42-60 of r[i, row].
 * digits: NULL, or zeros [16 * ceil(cols / digit_cols), cols] that get the bytes of out, lowest first, byte d of
 * out[i, col] in row 16 * (col / digit_cols) + 8 * i + d.
 * The index space is one row, `cols` columns. */
typedef struct {
    const int32_t *parts;
    const void *v;
    int64_t v_is_i8, v_row;
    int64_t rows, cols;
    uint64_t *out;
    uint8_t *digits;
    int64_t digit_cols;
} ree_fold_rows_args;

void ree_fold_rows(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* out[i, col] = sum over s and d of 256^d * sums[16 * s + 8 * i + d, col], modulo p; sums: int32 [16 * splits, cols],
 * out: [2, cols]. The index space is one row, `cols` columns. */
typedef struct {
    const int32_t *sums;
    int64_t splits, cols;
    uint64_t *out;
} ree_join_digits_args;

void ree_join_digits(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* Columns of a block of ree_fold_rows: boxes had better be multiples of them. */
int64_t ree_fold_block_cols(void);

#endif
