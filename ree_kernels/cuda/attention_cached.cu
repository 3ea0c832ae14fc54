/* The cache of keys and values: for each slot and head of keys, rows of `context` positions, dense. */
#include "ree.cuh"

struct ree_cached_args {
    const f32 *k, *v;
    i64 k_head, k_token, v_head, v_token;
    const i64 *position, *slot;
    f32 *keys, *values;
    i64 tokens, k_heads, d, d_v, context;
};

/* Puts a step's keys and values in the cache; those of padding are left out. Grid: tokens, heads of keys. */
REE_KERNEL(ree_cached_append, ree_cached_args, 256)
{
    const i64 token = blockIdx.x, head = blockIdx.y, slot = a.slot[token];
    if (slot < 0)
        return;
    const i64 place = (slot * a.k_heads + head) * a.context + a.position[token];
    const f32 *const k = a.k + head * a.k_head + token * a.k_token;
    const f32 *const v = a.v + head * a.v_head + token * a.v_token;
    for (i64 d = threadIdx.x; d < a.d + a.d_v; d += blockDim.x) {
        if (d < a.d)
            a.keys[place * a.d + d] = k[d];
        else
            a.values[place * a.d_v + d - a.d] = v[d - a.d];
    }
}
