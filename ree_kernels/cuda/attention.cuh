/* What the kernels of attention share: which keys a row sees, how operands are copied, and what a result is.
 *
 * Rows of the same head of keys lie side by side: row (token, member) for each of the `group` heads of queries that
 * share it. Over tensors an item of the batch is a sequence; over a cache `slot` says which one a token
 * belongs to (negative: padding), and `position` where it stands in it. Both are null over tensors.
 */
#ifndef REE_ATTENTION_CUH
#define REE_ATTENTION_CUH

/* The text before has REE_HEAD, components of a key; REE_VALUE, those of a value; and two functions that are printed
 * from the definition: ree_score(e, item, head, token, key, dot) with ree_score_args, and ree_exp(x). */
enum {
    HEAD = REE_HEAD,
    VALUE = REE_VALUE,
    HEAD_FOURS = (HEAD + 3) / 4,
    /* floats from row to row where lanes read float4 of 8 rows: an odd number of float4, so that these are all banks */
    HEAD_ROW = (HEAD_FOURS | 1) * 4
};

/* A kernel's bounds: threads of a block, and blocks of an SM at a time, which say how many registers a thread has. */
#ifdef REE_EMULATED
#define REE_BOUNDS(threads, blocks) threads
#else
#define REE_BOUNDS(threads, blocks) threads, blocks
#endif

/* Not inlined: the registers of a pass are its own, and nothing is kept in them from one pass to the next. */
#define REE_PASS static __device__ __noinline__

#define REE_MINUS_INFINITY f32_of_bits(0xff800000u)

REE_INLINE i64 attention_min(i64 a, i64 b) { return a < b ? a : b; }
REE_INLINE i64 attention_max(i64 a, i64 b) { return a > b ? a : b; }

/* The keys [start, end) of a row's folds. */
struct attention_keys {
    int start, end;
};

template <class Args> REE_INLINE attention_keys attention_keys_of(const Args &a, i64 token)
{
    i64 end = a.keys;
    if (a.position)
        end = a.position[token] + 1;
    else if (a.causal)
        end = attention_min(end, token + 1);
    const i64 start = a.window ? attention_max(end - a.window, 0) : 0;
    return {static_cast<int>(start), static_cast<int>(end)};
}

/* Over a cache: whether `count` tokens of a sequence that lie together in a stretch are computed in tiles
 * (attention.cu) or over parts of their keys (attention_split.cu). */
REE_INLINE bool attention_is_tiled(i64 slot, i64 count, i64 group, i64 rows_min)
{
    return slot >= 0 && count > 1 && count * group >= rows_min;
}

/* Whether rows that lie `stride` floats apart can be copied 16 bytes at a time. */
REE_INLINE bool attention_is_aligned(const f32 *base, i64 columns, i64 a, i64 b, i64 c)
{
    return ((reinterpret_cast<u64>(base) | 4 * static_cast<u64>(a | b | c | columns)) & 15) == 0;
}

/* Begin to copy four floats, of which `left` are there; the others become zeros. */
REE_INLINE void attention_copy4(f32 *to, const f32 *from, int left, bool is_aligned)
{
    if (is_aligned) {
        ree_copy_async16(to, from, left > 0);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        ree_copy_async4(to + i, from + i, i < left);
}

/* Begin to copy four floats of each of `count` rows: the n-th, `apart` rows behind the one before, to to(n). `rows`, of
 * which `left` floats each, are there from the first one on. stride: floats from one to the next. */
template <int count, class To>
REE_INLINE void attention_copy_rows(const f32 *from, i64 stride, int rows, int apart, int left, bool is_aligned, To to)
{
    if (is_aligned) {
#pragma unroll
        for (int n = 0; n < count; n++, from += stride)
            ree_copy_async16(to(n), from, left > 0 && n * apart < rows);
        return;
    }
#pragma unroll 1
    for (int n = 0; n < count; n++, from += stride)
#pragma unroll
        for (int i = 0; i < 4; i++)
            ree_copy_async4(to(n) + i, from + i, i < left && n * apart < rows);
}

REE_INLINE float4 attention_load4(const f32 *from) { return *reinterpret_cast<const float4 *>(from); }
REE_INLINE void attention_store4(f32 *to, float4 v) { *reinterpret_cast<float4 *>(to) = v; }
REE_INLINE f32 attention_part(const float4 &v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

/* The larger one. A NaN is passed over: its own weight is NaN, so are the row's sum and with it all results. The sign
 * of a zero does not matter, since the largest score is only subtracted. */
REE_INLINE f32 attention_larger(f32 a, f32 b) { return b > a ? b : a; }

/* What is subtracted from a row's scores. */
REE_INLINE f32 attention_shift(f32 largest) { return largest == REE_MINUS_INFINITY ? 0.0f : largest; }

REE_INLINE f32 attention_result(f32 mixed, f32 sum) { return sum == 0.0f ? 0.0f : f32_canonical(f32_div(mixed, sum)); }

#endif
