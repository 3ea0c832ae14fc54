/* What the kernels of matrix products share: how operands are copied into shared memory, a step of k at a time.
 *
 * The order is that of `dot`: an FMA chain from +0 over each chunk of 256 k, chunk sums added in ascending order to a
 * total that starts at +0. Beyond the end of k both operands are filled with zeros: the chain goes on with fma(0, 0,
 * x), which is x but for x = -0, and a total, which is never -0, is the same with either zero added. Rows and columns
 * beyond the end are copies of the last one, whose results nobody stores.
 */
#ifndef REE_MATMUL_CUH
#define REE_MATMUL_CUH

/* How an operand lies in memory. `outer` is its axis other than k: rows of A, columns of B. No stride is negative. */
enum {
    REE_LIES_STRIDED,
    REE_LIES_INNER,   /* k lies side by side */
    REE_LIES_OUTER,   /* outer lies side by side */
    REE_LIES_OUTER16, /* the same, and groups of 4 of outer are aligned to 16 bytes */
    REE_LIES_PANELS,  /* 8 of outer side by side for k ascending, then the next 8; 16-byte aligned, padded to 8 */
    REE_LIES_PANELS_BF16
};
enum { REE_PANEL = 8 };

REE_INLINE int ree_min(int a, int b) { return a < b ? a : b; }

/* a - b, or a large number */
REE_INLINE int ree_difference(i64 a, i64 b) { return a - b > (1 << 30) ? 1 << 30 : static_cast<int>(a - b); }

/* Rounds of chunks from `first` on, to before `end`. */
struct ree_rounds {
    int first, end;
};

/* Those of block number `split` of `splits`, which share out all. */
REE_INLINE ree_rounds ree_shared_rounds(i64 all, u32 split, i64 splits)
{
    ree_rounds rounds;
    rounds.first = static_cast<int>(all * split / splits);
    rounds.end = static_cast<int>(all * (split + 1) / splits);
    return rounds;
}

/* The share of one thread in copying a step of an operand: `k_step` k of each of `chunks` chunks in a row.
 *
 * In shared memory element (k, o) of a chunk's step lies at k * pitch + o, the next chunk's step behind it. bf16 is
 * copied to a place of the thread's own first, from where the thread widens it. A step has `parts`, each a copy's
 * worth; a thread has part `thread`, `thread + threads`, ... All numbers are powers of two: the k and outer of its
 * copy i are those of copy 0 and, on top, what does not depend on the thread.
 */
template <int outer, int k_step, int chunks, int threads, int mode> struct ree_matmul_operand {
    enum {
        is_panel = mode == REE_LIES_PANELS || mode == REE_LIES_PANELS_BF16,
        is_bf16 = mode == REE_LIES_PANELS_BF16,
        is_by_k = mode == REE_LIES_STRIDED || mode == REE_LIES_INNER,
        has_fixed_k = is_panel || mode == REE_LIES_INNER, /* from k to k, that is */
        item_bytes = is_bf16 ? 2 : 4,
        width = is_bf16 ? 8 : mode == REE_LIES_PANELS || mode == REE_LIES_OUTER16 ? 4 : 1, /* elements of a copy */
        chunk_parts = outer * k_step / width,
        parts = chunks * chunk_parts,
        copies = (parts + threads - 1) / threads,
        /* float4 along outer are read from it; conflicts are avoided where it is written */
        pitch = outer + (mode == REE_LIES_PANELS ? 8 : 4),
        floats = k_step * pitch, /* of a chunk's step */
        stage_bytes = is_bf16 ? 16 * copies * threads : 4 * chunks * floats
    };
    u32 offset[copies];  /* in bytes, from the step's first element to copy i's outer and copy 0's k */
    i64 k_bytes;         /* from k to k */
    int k_first, target; /* of copy 0: its k, its place in the stage in bytes */

    static REE_INLINE int inner_of(int part)
    {
        part %= chunk_parts;
        if (is_bf16)
            return part % k_step;
        if (is_panel)
            return part / 2 % k_step;
        if (is_by_k) /* 8 k side by side: a sector of memory, and all banks of shared memory */
            return part % 8 + part / (8 * outer) * 8;
        return part / (outer / width);
    }
    static REE_INLINE int outer_of(int part)
    {
        part %= chunk_parts;
        if (is_bf16)
            return part / k_step * 8;
        if (is_panel)
            return part / (2 * k_step) * 8 + part % 2 * 4;
        if (is_by_k)
            return part / 8 % outer;
        return part % (outer / width) * width;
    }
    static REE_INLINE int k_of(int part) { return part / chunk_parts * REE_CHUNK + inner_of(part); }
    static REE_INLINE int place_of(int part)
    {
        return part / chunk_parts * floats + inner_of(part) * pitch + outer_of(part);
    }
    static REE_INLINE bool has(int thread, int i) { return parts % threads == 0 || thread + i * threads < parts; }

    /* outer_left: how many there are from the first one of the tile; `stride` is from panel to panel, if any. */
    __device__ ree_matmul_operand(int thread, int outer_left, int stride, int stride_k)
    {
        const int last = is_panel ? (outer_left - 1) / 8 : outer_left - width;
        k_first = k_of(thread);
        k_bytes = mode == REE_LIES_INNER ? 4 : item_bytes * (is_panel ? 8 : static_cast<i64>(stride_k));
        target = is_bf16 ? 16 * thread : 4 * place_of(thread);
#pragma unroll
        for (int i = 0; i < copies; i++) {
            const int o = outer_of(thread) + outer_of(i * threads);
            const int elements = is_panel ? ree_min(o / 8, last) * stride + o % 8 : ree_min(o, last) * stride;
            offset[i] = static_cast<u32>(elements) * item_bytes + static_cast<u32>(k_first * k_bytes);
        }
    }

    /* Begin to copy the step at `source`, of whose k `left` are there; all: no need to look. */
    template <bool all> REE_INLINE void copy(char *stage, int thread, const char *source, int left) const
    {
        char *const to = stage + target;
        int k_more = 0;
#pragma unroll
        for (int i = 0; i < copies; i++) {
            /* step by step: products of strides would cost registers */
            if (!has_fixed_k && k_of(i * threads) != k_more)
                source += (k_of(i * threads) - k_more) * k_bytes;
            k_more = k_of(i * threads);
            if (!has(thread, i))
                continue;
            const bool inside = all || k_first < left - k_more;
            const char *const from = source + offset[i] + (has_fixed_k ? k_more * k_bytes : 0);
            if (is_bf16)
                ree_copy_async16(to + 16 * i * threads, from, inside);
            else if (width == 4)
                ree_copy_async16(to + 4 * place_of(i * threads), from, inside);
            else
                ree_copy_async4(to + 4 * place_of(i * threads), from, inside);
        }
    }

    /* Widen what this thread has copied to a stage: to `step`. */
    REE_INLINE void widen(f32 *step, const char *stage, int thread) const
    {
#pragma unroll
        for (int i = 0; i < copies; i++) {
            if (!has(thread, i))
                continue;
            const uint4 x = *reinterpret_cast<const uint4 *>(stage + target + 16 * i * threads);
            f32 *const to = step + place_of(thread) + place_of(i * threads);
            *reinterpret_cast<float4 *>(to) = make_float4(f32_of_bits(x.x << 16), f32_of_bits(x.x & 0xffff0000u),
                                                          f32_of_bits(x.y << 16), f32_of_bits(x.y & 0xffff0000u));
            *reinterpret_cast<float4 *>(to + 4) = make_float4(f32_of_bits(x.z << 16), f32_of_bits(x.z & 0xffff0000u),
                                                              f32_of_bits(x.w << 16), f32_of_bits(x.w & 0xffff0000u));
        }
    }
};

#endif
