/* Scaled dot-product attention without the T x S matrix. */
#ifndef REE_ATTENTION_H
#define REE_ATTENTION_H

#include "abi.h"

/* out[b,h,t,:] = sum_s p(s) v[b,h',s,:] / sum_s p(s), or 0 where that sum is 0; h' = h / (heads / k_heads).
 * Both folds run over s < len, len = causal ? min(s, t + 1) : s, and leave out all but the last `window` of those
 * keys (0: none is left out). Rows of the index space are b * heads * t flattened, columns d_v; a box has all columns.
 * Strides are in floats, the innermost stride is 1.
 *
 * p comes from `hook`: called with rows [r0, r1) and columns [c0, c1), it turns raw scores dot(q[t], k[s]) into p in
 * place, and writes 0 at s >= len and before the window. Its args are a ree_jit_args whose first and last pointers are
 * replaced by one to the scores: element (row, s) at pointer + row * score_row + s, score_row >= s. */
typedef struct {
    const float *q, *k, *v;
    float *out;
    int64_t q_batch, q_head, q_token;
    int64_t k_batch, k_head, k_token;
    int64_t v_batch, v_head, v_token;
    int64_t out_batch, out_head, out_token;
    int64_t batch, heads, k_heads, t, s, d, d_v;
    int64_t causal, window;
    int64_t score_row;
    ree_kernel hook;
    const ree_jit_args *hook_args;
    int64_t hook_pointers; /* how many pointers hook_args has, 1..32 */
} ree_attention_args;

void ree_attention(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* Scratch for boxes of up to this many rows; the hook's own comes on top. */
int64_t ree_attention_scratch_bytes(int64_t rows, int64_t score_row, int64_t d_v);

#endif
