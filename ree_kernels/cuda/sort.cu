/* Stable argsort and top-k selection of rows.
 *
 * Keys become unsigned integers in the wanted order (NaN above everything, -0 equal to +0, bits flipped to descend),
 * and items (key, index) are sorted, no two of which are equal: any network, any merge gives the one result. A block
 * sorts a tile in shared memory, or selects its first few; sorted tiles of longer rows are merged pairwise.
 * A narrow item is key * 2^32 + index in one word, a wide one has 64 bits for each.
 */
#include "ree.cuh"
#include "keys.cuh"

enum { SORT_TARGET = 12, ITEMS_PER_THREAD = 4 };

/* Rows of n, from keys x (element (row, i) at row * x_row + i * x_step) or, if that is null, items of another launch.
 * A row is `tiles` tiles of 2^tile_bits. The first `keep` of each, at most 2^run_bits, go to `kept`, tile after tile,
 * or, if that is null and a row is one tile, their indices to `out`. Places behind a row's end hold items behind all.
 * dtype: its number, or SORT_TARGET: i64 indices into an axis of `extent`, which wrap; one outside counts as `extent`
 * and sets the status. flip: what keys are xored with. */
struct ree_sort_tiles_args {
    const void *x;
    const void *items;
    void *kept;
    i64 *out;
    i64 *status;
    i64 rows, n, x_row, x_step;
    i64 tiles, tile_bits, run_bits, keep, out_row;
    i64 dtype, flip, extent;
};

/* Rows of n items in sorted runs, of which every second is merged with the next, by blocks of REE_SORT_MERGED places,
 * which divide n and the run. Only a row's last run has items behind all, so that no two that meet are equal. To
 * `merged` or, if that is null, the indices of the first k to `out`; blocks: of a row. */
struct ree_sort_merge_args {
    const void *items;
    void *merged;
    i64 *out;
    i64 n, run, blocks, k, out_row;
};

/* -- items ------------------------------------------------------------------------------------------- */
typedef u64 ree_narrow;
struct alignas(16) ree_wide {
    u64 key, index;
};

REE_INLINE bool ree_before(ree_narrow a, ree_narrow b) { return a < b; }
REE_INLINE bool ree_before(const ree_wide &a, const ree_wide &b)
{
    return a.key < b.key || (a.key == b.key && a.index < b.index);
}
REE_INLINE i64 ree_index(ree_narrow a) { return static_cast<i64>(a & 0xffffffffu); }
REE_INLINE i64 ree_index(const ree_wide &a) { return static_cast<i64>(a.index); }
REE_INLINE void ree_make(ree_narrow &item, u64 key, i64 index) { item = key << 32 | static_cast<u64>(index); }
REE_INLINE void ree_make(ree_wide &item, u64 key, i64 index) { item = {key, static_cast<u64>(index)}; }
REE_INLINE void ree_make_last(ree_narrow &item) { item = ~0ull; }
REE_INLINE void ree_make_last(ree_wide &item) { item = {~0ull, ~0ull}; }

REE_INLINE u64 ree_target(const ree_sort_tiles_args &a, i64 index)
{
    if (index >= -a.extent && index < a.extent)
        return static_cast<u64>(index < 0 ? index + a.extent : index);
    *reinterpret_cast<volatile i64 *>(a.status) = 1;
    return static_cast<u64>(a.extent);
}

REE_INLINE u64 ree_sort_key(const ree_sort_tiles_args &a, i64 at)
{
    switch (a.dtype) {
        case DTYPE_BOOL: return static_cast<const u8 *>(a.x)[at] != 0;
        case DTYPE_U8: return static_cast<const u8 *>(a.x)[at];
        case DTYPE_I32: return ree_key_of_i32(static_cast<const u32 *>(a.x)[at]);
        case DTYPE_F32: return ree_key_of_f32(static_cast<const u32 *>(a.x)[at]);
        case DTYPE_I64: return ree_key_of_i64(static_cast<const u64 *>(a.x)[at]);
        default: return ree_target(a, static_cast<const i64 *>(a.x)[at]);
    }
}

/* -- a tile -------------------------------------------------------------------------------------------- */
/* Put items `low` and low ^ mask in order, for every low without the bit `stride`. */
template <class T> REE_INLINE void ree_exchange(T *items, int pairs, int stride, int mask)
{
    for (int p = static_cast<int>(threadIdx.x); p < pairs; p += blockDim.x) {
        const int low = 2 * (p & ~(stride - 1)) + (p & (stride - 1)), high = low ^ mask;
        const T a = items[low], b = items[high];
        if (ree_before(b, a)) {
            items[low] = b;
            items[high] = a;
        }
    }
}

/* Merge neighbouring sorted runs of size / 2, all items at once (Batcher's bitonic network, every run upwards: the
 * first step compares mirrored places) or, if `is_bitonic`, sort runs of `size` that pruning has left. Steps of strides
 * up to 32 stay in the 64 items of a warp, which waits for others only before them. */
template <class T> REE_INLINE void ree_merge_runs(T *items, int count, int size, bool is_bitonic)
{
    bool is_new = is_bitonic || size == 2; /* other threads wrote last */
    int mask = is_bitonic ? size / 2 : size - 1;
#pragma unroll 1
    for (int stride = size / 2; stride > 0; stride /= 2, mask = stride) {
        if (stride >= REE_WARP || is_new)
            __syncthreads();
        else
            __syncwarp();
        ree_exchange(items, count / 2, stride, mask);
        is_new = false;
    }
}

/* Of each two neighbouring sorted runs keep the first `run` items, as a run that falls after it rises; gives how many
 * items are left of `count`. */
template <class T> REE_INLINE int ree_prune(T *items, int count, int run)
{
    const int left = count / 2;
    for (int first = 0; first < left; first += blockDim.x) {
        const int j = first + static_cast<int>(threadIdx.x), base = 2 * (j & ~(run - 1)), i = j & (run - 1);
        T item;
        __syncthreads();
        if (j < left) {
            const T a = items[base + i], b = items[base + 2 * run - 1 - i];
            item = ree_before(b, a) ? b : a;
        }
        __syncthreads(); /* what is written was read; what others read next lies behind it */
        if (j < left)
            items[j] = item;
    }
    return left;
}

template <class T> REE_INLINE void ree_sort_tiles(const ree_sort_tiles_args &a)
{
    T *items = reinterpret_cast<T *>(ree_shared());
    const int threads = static_cast<int>(blockDim.x), tile_bits = static_cast<int>(a.tile_bits);
    const int parts = ITEMS_PER_THREAD * threads >> tile_bits, run = 1 << static_cast<int>(a.run_bits);
    const u32 first = blockIdx.x * static_cast<u32>(parts), tiles = static_cast<u32>(a.tiles);
    int tile = 1 << tile_bits, count = parts << tile_bits;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
        const u32 part = first + static_cast<u32>(i >> tile_bits);
        const i64 row = part / tiles, at = static_cast<i64>(part % tiles) * tile + (i & (tile - 1));
        T item;
        if (row >= a.rows || at >= a.n)
            ree_make_last(item);
        else if (a.x == nullptr)
            item = static_cast<const T *>(a.items)[row * a.n + at];
        else
            ree_make(item, ree_sort_key(a, row * a.x_row + at * a.x_step) ^ static_cast<u64>(a.flip), at);
        items[i] = item;
    }
    for (int size = 2; size <= tile && size <= run; size *= 2)
        ree_merge_runs(items, count, size, false);
    for (; tile > run; tile /= 2) {
        count = ree_prune(items, count, run);
        ree_merge_runs(items, count, run, true);
    }
    __syncthreads();
    const int keep = static_cast<int>(a.keep);
    for (int i = static_cast<int>(threadIdx.x); i < parts * keep; i += threads) {
        const u32 part = first + static_cast<u32>(i / keep);
        const T item = items[i / keep * tile + i % keep];
        if (part / tiles >= a.rows)
            continue;
        if (a.kept != nullptr)
            static_cast<T *>(a.kept)[static_cast<i64>(part) * keep + i % keep] = item;
        else
            a.out[part * a.out_row + i % keep] = ree_index(item);
    }
}

REE_KERNEL(ree_sort_tiles_narrow, ree_sort_tiles_args, 1024) { ree_sort_tiles<ree_narrow>(a); }
REE_KERNEL(ree_sort_tiles_wide, ree_sort_tiles_args, 1024) { ree_sort_tiles<ree_wide>(a); }

/* -- merging sorted runs --------------------------------------------------------------------------------- */
#ifndef REE_SORT_MERGED
#define REE_SORT_MERGED 1024 /* places that a block merges */
#endif

/* How many of the first d items of two merged runs come from x, by a warp: each step cuts the range in 33. */
template <class T> REE_INLINE i64 ree_split(const T *x, i64 x_n, const T *y, i64 y_n, i64 d)
{
    i64 low = d < y_n ? 0 : d - y_n, high = d < x_n ? d : x_n;
    while (low < high) {
        const i64 step = (high - low + REE_WARP - 1) / REE_WARP;
        const i64 probe = low + (static_cast<i64>(threadIdx.x) % REE_WARP + 1) * step - 1;
        const bool is_in = probe < high && !ree_before(y[d - 1 - probe], x[probe]);
        const int passed = __popc(__ballot_sync(REE_ALL_LANES, is_in));
        low += passed * step;
        high = high < low + step - 1 ? high : low + step - 1;
    }
    return high;
}

/* How many of n sorted items come before one. */
template <class T> REE_INLINE int ree_rank(const T *items, int n, const T &item)
{
    int low = 0;
    while (low < n) {
        const int middle = (low + n) / 2;
        if (ree_before(items[middle], item))
            low = middle + 1;
        else
            n = middle;
    }
    return low;
}

template <class T> REE_INLINE void ree_sort_merge(const ree_sort_merge_args &a)
{
    __shared__ T items[REE_SORT_MERGED];
    __shared__ i64 splits[2];
    const i64 row = blockIdx.x / a.blocks, place = blockIdx.x % a.blocks * REE_SORT_MERGED;
    const i64 base = place / (2 * a.run) * (2 * a.run), rest = a.n - base - a.run;
    const T *x = static_cast<const T *>(a.items) + row * a.n + base, *y = x + a.run;
    const i64 y_n = rest < 0 ? 0 : rest < a.run ? rest : a.run, d = place - base;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / REE_WARP;
    if (warp < 2) {
        const i64 split = ree_split(x, a.run, y, y_n, d + warp * REE_SORT_MERGED);
        splits[warp] = split;
    }
    __syncthreads();
    const int x_here = static_cast<int>(splits[1] - splits[0]);
    x += splits[0];
    y += d - splits[0];
    for (int i = thread; i < REE_SORT_MERGED; i += blockDim.x)
        items[i] = i < x_here ? x[i] : y[i - x_here];
    __syncthreads();
    for (int i = thread; i < REE_SORT_MERGED; i += blockDim.x) {
        const T item = items[i];
        const bool is_x = i < x_here;
        const T *others_at = is_x ? items + x_here : items;
        const int others = ree_rank(others_at, is_x ? REE_SORT_MERGED - x_here : x_here, item);
        const i64 at = place + (is_x ? i : i - x_here) + others;
        if (a.merged != nullptr)
            static_cast<T *>(a.merged)[row * a.n + at] = item;
        else if (at < a.k)
            a.out[row * a.out_row + at] = ree_index(item);
    }
}

REE_KERNEL(ree_sort_merge_narrow, ree_sort_merge_args, 256) { ree_sort_merge<ree_narrow>(a); }
REE_KERNEL(ree_sort_merge_wide, ree_sort_merge_args, 256) { ree_sort_merge<ree_wide>(a); }
