/* Attention of rows that stand anywhere in their sequences, over keys and values that are kept between steps. */
#ifndef REE_ATTENTION_CACHED_H
#define REE_ATTENTION_CACHED_H

#include "abi.h"

/* One step's rows and a cache of `slots` sequences with up to `context` keys each (a multiple of 256).
 *
 * Row i belongs to the sequence in slot[i] (negative: padding, whose result is 0) and stands at position[i] in it.
 * Rows of one slot follow one another, their positions ascending by one. q, out: [heads, n, d or d_v] with the strides
 * given, in floats, the innermost 1; k, v: this step's, [k_heads, n, d or d_v].
 *
 * The cache lies as the register tiles read it, for each slot and head: keys as panels [d][REE_NR]; values as chunks
 * of 256 keys, each as panels [256][REE_NR]; `unsafe` has a byte for each chunk, 1 if a value in it may be infinite
 * or NaN (ree_cached_bytes). */
typedef struct {
    const float *q, *k, *v;
    float *out;
    int64_t q_head, q_token, k_head, k_token, v_head, v_token, out_head, out_token;
    const int64_t *position, *slot;
    float *keys, *values;
    uint8_t *unsafe;
    int64_t n, heads, k_heads, d, d_v, context, window;
    ree_kernel hook; /* as in ree_attention; score_row is context */
    const ree_jit_args *hook_args;
    int64_t hook_pointers;
} ree_cached_args;

/* Put this step's keys and values in the cache: rows k_heads * n, one column. */
void ree_cached_append(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* The attention itself, over all keys up to each row's own: row (head of keys, i, member) of the index space
 * [k_heads, n, heads / k_heads], columns d_v; a box has all columns. */
void ree_cached_attention(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

int64_t ree_cached_scratch_bytes(int64_t rows, int64_t context, int64_t d_v);

/* Floats of the keys and of the values of one slot and head. */
int64_t ree_cached_key_floats(int64_t context, int64_t d);
int64_t ree_cached_value_floats(int64_t context, int64_t d_v);

#endif
