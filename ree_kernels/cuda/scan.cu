/* Scans of rows: running sums and products, indices of running maxima and minima.
 *
 * Floats are added and multiplied strictly in sequence, so a thread walks each row; its warp brings the elements by way
 * of shared memory, so that neighbouring lanes read and write neighbours. Integers wrap, and the running best is the
 * greatest of items (key, index), later ones being greater among equals: both may be joined in any order, so that where
 * rows are few, blocks scan segments of them after a launch has joined each segment.
 */
#include "ree.cuh"
#include "keys.cuh"

#ifndef REE_WALK_WARPS
#define REE_WALK_WARPS 4 /* of a block that walks */
#endif
#ifndef REE_WALK_TILE_BITS
#define REE_WALK_TILE_BITS 9 /* 2^9 elements are brought at a time */
#endif
#ifndef REE_SCAN_THREADS
#define REE_SCAN_THREADS 512 /* of a block that scans a segment */
#endif

enum { WALK_WARPS = REE_WALK_WARPS, WALK_THREADS = WALK_WARPS * REE_WARP, WALK_TILE = 1 << REE_WALK_TILE_BITS };
enum { SCAN_THREADS = REE_SCAN_THREADS, SCAN_WARPS = SCAN_THREADS / REE_WARP };

/* Element (row, k) of x at row * x_row + k * x_step, of out (the dtype of x, or i64 indices) at row * n + k.
 * row_bits: a walking warp has 2^row_bits rows. Else a row is `segments` segments of `segment` elements; totals: what
 * the elements of each join to. is_min: the best is the least. */
struct ree_scan_args {
    const void *x;
    void *out;
    void *totals;
    i64 rows, n, x_row, x_step;
    i64 row_bits, segments, segment;
    i64 dtype, is_min;
};

/* -- what is scanned: elements as they lie in memory (raw), states, and results, as large as an element ------------ */
/* The greater the better; NaN is best. */
REE_INLINE u32 ree_key(const ree_scan_args &a, u32 raw)
{
    const u32 flip = a.is_min != 0 ? 0xffffffffu : 0u;
    if (a.dtype == DTYPE_I32)
        return ree_key_of_i32(raw) ^ flip;
    const u32 key = ree_key_of_f32(raw);
    return key == 0xffffffffu ? key : key ^ flip;
}
REE_INLINE u64 ree_key(const ree_scan_args &a, u64 raw) { return ree_key_of_i64(raw) ^ (a.is_min != 0 ? ~0ull : 0ull); }

struct ree_float_sum {
    typedef u32 raw;
    typedef f32 state;
    static REE_INLINE state start(void) { return 0.0f; }
    static REE_INLINE state next(const ree_scan_args &, state before, raw x, i64)
    {
        return f32_add(before, f32_of_bits(x));
    }
    static REE_INLINE raw result(state value) { return f32_bits(f32_canonical(value)); }
    static REE_INLINE void store(const ree_scan_args &a, i64 at, raw x) { static_cast<raw *>(a.out)[at] = x; }
};
struct ree_float_product : ree_float_sum {
    static REE_INLINE state start(void) { return 1.0f; }
    static REE_INLINE state next(const ree_scan_args &, state before, raw x, i64)
    {
        return f32_mul(before, f32_of_bits(x));
    }
};

template <class T> struct ree_sum {
    typedef T raw, state;
    static REE_INLINE state start(void) { return 0; }
    static REE_INLINE state of(const ree_scan_args &, raw x, i64) { return x; }
    static REE_INLINE state join(state before, state x) { return before + x; }
    static REE_INLINE state next(const ree_scan_args &, state before, raw x, i64) { return before + x; }
    static REE_INLINE raw result(state value) { return value; }
    static REE_INLINE void store(const ree_scan_args &a, i64 at, raw x) { static_cast<raw *>(a.out)[at] = x; }
};
template <class T> struct ree_product : ree_sum<T> {
    static REE_INLINE T start(void) { return 1; }
    static REE_INLINE T join(T before, T x) { return before * x; }
    static REE_INLINE T next(const ree_scan_args &, T before, T x, i64) { return before * x; }
};

struct alignas(16) ree_item {
    u64 key, index;
};
REE_INLINE bool ree_is_better(const ree_item &x, const ree_item &y)
{
    return x.key > y.key || (x.key == y.key && x.index > y.index);
}

/* key * 2^32 + index */
struct ree_best_32 {
    typedef u32 raw;
    typedef u64 state;
    static REE_INLINE state start(void) { return 0; }
    static REE_INLINE state of(const ree_scan_args &a, raw x, i64 k)
    {
        return static_cast<u64>(ree_key(a, x)) << 32 | static_cast<u64>(k);
    }
    static REE_INLINE state join(state before, state x) { return x > before ? x : before; }
    static REE_INLINE state next(const ree_scan_args &a, state before, raw x, i64 k)
    {
        return join(before, of(a, x, k));
    }
    static REE_INLINE raw result(state best) { return static_cast<raw>(best); }
    static REE_INLINE void store(const ree_scan_args &a, i64 at, raw x) { static_cast<i64 *>(a.out)[at] = x; }
};
struct ree_best_64 {
    typedef u64 raw;
    typedef ree_item state;
    static REE_INLINE state start(void) { return {0, 0}; }
    static REE_INLINE state of(const ree_scan_args &a, raw x, i64 k) { return {ree_key(a, x), static_cast<u64>(k)}; }
    static REE_INLINE state join(const state &before, const state &x) { return ree_is_better(x, before) ? x : before; }
    static REE_INLINE state next(const ree_scan_args &a, const state &before, raw x, i64 k)
    {
        return join(before, of(a, x, k));
    }
    static REE_INLINE raw result(const state &best) { return best.index; }
    static REE_INLINE void store(const ree_scan_args &a, i64 at, raw x) { static_cast<u64 *>(a.out)[at] = x; }
};

/* -- rows walked by a thread each ---------------------------------------------------------------------------- */
/* A tile of a warp: its rows are an odd number of elements apart, so that lanes that walk are in different banks. */
struct ree_tile {
    i64 first; /* row */
    int row_bits, column_bits;

    REE_INLINE int columns(void) const { return 1 << column_bits; }
    REE_INLINE int place(int e) const { return e + (e >> column_bits); }

    /* Call f(row, column, place) for the elements that this lane brings: of rows that x has. */
    template <class F> REE_INLINE void each(i64 rows, F f) const
    {
#pragma unroll 4
        for (int e = static_cast<int>(threadIdx.x) % REE_WARP; e < WALK_TILE; e += REE_WARP)
            if (first + (e >> column_bits) < rows)
                f(first + (e >> column_bits), e & (columns() - 1), place(e));
    }
};

REE_INLINE void ree_copy_raw(u32 *shared, const u32 *x) { ree_copy_async4(shared, x); }
REE_INLINE void ree_copy_raw(u64 *shared, const u64 *x)
{
    ree_copy_async4(shared, x);
    ree_copy_async4(reinterpret_cast<u32 *>(shared) + 1, reinterpret_cast<const u32 *>(x) + 1);
}

template <class S> REE_INLINE void ree_walk(const ree_scan_args &a)
{
    typedef typename S::raw raw;
    __shared__ raw stages[WALK_WARPS][2][WALK_TILE + REE_WARP];
    const int lane = static_cast<int>(threadIdx.x) % REE_WARP, warp = static_cast<int>(threadIdx.x) / REE_WARP;
    const int row_bits = static_cast<int>(a.row_bits);
    const i64 first = (static_cast<i64>(blockIdx.x) * WALK_WARPS + warp) << row_bits;
    const ree_tile tile = {first, row_bits, REE_WALK_TILE_BITS - row_bits};
    const raw *x = static_cast<const raw *>(a.x);
    const auto bring = [&](i64 start, raw *stage) {
        tile.each(a.rows, [&](i64 row, int column, int place) {
            if (start + column < a.n)
                ree_copy_raw(stage + place, x + row * a.x_row + (start + column) * a.x_step);
        });
        ree_copy_commit();
    };
    typename S::state state = S::start();
    bring(0, stages[warp][0]);
    int turn = 0;
    for (i64 start = 0; start < a.n; start += tile.columns(), turn ^= 1) {
        raw *stage = stages[warp][turn];
        bring(start + tile.columns(), stages[warp][turn ^ 1]); /* under way while the rows are walked */
        ree_copy_wait<1>();
        __syncwarp();
        if (lane < 1 << row_bits) {
            raw *row = stage + lane * (tile.columns() + 1);
#pragma unroll 16
            for (int c = 0; c < tile.columns(); c++) {
                state = S::next(a, state, row[c], start + c);
                row[c] = S::result(state);
            }
        }
        __syncwarp();
        tile.each(a.rows, [&](i64 row, int column, int place) {
            if (start + column < a.n)
                S::store(a, row * a.n + start + column, stage[place]);
        });
        __syncwarp();
    }
}

/* -- segments scanned by a block each ------------------------------------------------------------------------ */
REE_INLINE u32 ree_from_lower(u32 x, int lanes) { return __shfl_up_sync(REE_ALL_LANES, x, lanes); }
REE_INLINE u64 ree_from_lower(u64 x, int lanes) { return __shfl_up_sync(REE_ALL_LANES, x, lanes); }
REE_INLINE ree_item ree_from_lower(const ree_item &x, int lanes)
{
    return {ree_from_lower(x.key, lanes), ree_from_lower(x.index, lanes)};
}

/* What the values of the threads up to this one join to, and those of all; parts: SCAN_WARPS of them, which may be used
 * again at the call after the next. */
template <class S> REE_INLINE typename S::state ree_block_scan(typename S::state x, typename S::state *parts,
                                                               typename S::state &all)
{
    const int lane = static_cast<int>(threadIdx.x) % REE_WARP, warp = static_cast<int>(threadIdx.x) / REE_WARP;
#pragma unroll
    for (int step = 1; step < REE_WARP; step *= 2) {
        const typename S::state lower = ree_from_lower(x, step);
        if (lane >= step)
            x = S::join(lower, x);
    }
    if (lane == REE_WARP - 1)
        parts[warp] = x;
    __syncthreads();
    typename S::state before = S::start();
    all = before;
#pragma unroll
    for (int w = 0; w < SCAN_WARPS; w++) {
        if (w == warp)
            before = all;
        all = S::join(all, parts[w]);
    }
    return S::join(before, x);
}

template <class S> REE_INLINE void ree_totals(const ree_scan_args &a)
{
    __shared__ typename S::state parts[SCAN_WARPS];
    const i64 row = blockIdx.x / a.segments, start = blockIdx.x % a.segments * a.segment;
    const i64 end = a.n - start < a.segment ? a.n : start + a.segment;
    const typename S::raw *x = static_cast<const typename S::raw *>(a.x) + row * a.x_row;
    typename S::state total = S::start(), all;
    for (i64 k = start + threadIdx.x; k < end; k += SCAN_THREADS)
        total = S::join(total, S::of(a, x[k * a.x_step], k));
    __syncwarp();
    ree_block_scan<S>(total, parts, all);
    if (threadIdx.x == 0)
        static_cast<typename S::state *>(a.totals)[blockIdx.x] = all;
}

template <class S> REE_INLINE void ree_scan(const ree_scan_args &a)
{
    typedef typename S::state state;
    __shared__ state parts[2][SCAN_WARPS];
    const i64 row = blockIdx.x / a.segments, segment = blockIdx.x % a.segments, start = segment * a.segment;
    const i64 end = a.n - start < a.segment ? a.n : start + a.segment;
    const state *totals = static_cast<const state *>(a.totals) + row * a.segments;
    const typename S::raw *x = static_cast<const typename S::raw *>(a.x) + row * a.x_row;
    state carry, value = S::start(), all;
    for (i64 s = threadIdx.x; s < segment; s += SCAN_THREADS)
        value = S::join(value, totals[s]);
    __syncwarp();
    ree_block_scan<S>(value, parts[1], carry);
    int turn = 0;
    for (i64 first = start; first < end; first += SCAN_THREADS, turn ^= 1) {
        const i64 k = first + threadIdx.x;
        value = k < end ? S::of(a, x[k * a.x_step], k) : S::start();
        __syncwarp();
        value = S::join(carry, ree_block_scan<S>(value, parts[turn], all));
        if (k < end)
            S::store(a, row * a.n + k, S::result(value));
        carry = S::join(carry, all);
    }
}

#define REE_WALK(name, scan)                                                                                           \
    REE_KERNEL(ree_walk_##name, ree_scan_args, WALK_THREADS) { ree_walk<scan>(a); }
#define REE_SCAN(name, scan)                                                                                           \
    REE_WALK(name, scan)                                                                                               \
    REE_KERNEL(ree_totals_##name, ree_scan_args, SCAN_THREADS) { ree_totals<scan>(a); }                                \
    REE_KERNEL(ree_scan_##name, ree_scan_args, SCAN_THREADS) { ree_scan<scan>(a); }
REE_WALK(sum_float, ree_float_sum)
REE_WALK(product_float, ree_float_product)
REE_SCAN(sum_32, ree_sum<u32>)
REE_SCAN(sum_64, ree_sum<u64>)
REE_SCAN(product_32, ree_product<u32>)
REE_SCAN(product_64, ree_product<u64>)
REE_SCAN(best_32, ree_best_32)
REE_SCAN(best_64, ree_best_64)
