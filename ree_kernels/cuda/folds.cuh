/* Folds, in the order that their meaning fixes (docs/SPEC.md, "Folds"): by one thread, and by all threads of a block.
 *
 * A block's fold is called by all its threads, with the same n and the same meaning of f; f(k) is asked for by one
 * thread for each k. Every thread gets the result, and shared memory may be used again when it is there.
 * AHEAD: how many evaluations of f are unrolled, so that their loads are under way together.
 */
#ifndef REE_FOLDS_CUH
#define REE_FOLDS_CUH

enum { REE_LEVELS = 6 }; /* sums of sums: 256^6 = 2^48 elements */

REE_INLINE f32 ree_plus(f32 a, f32 b) { return f32_add(a, b); }
REE_INLINE f64 ree_plus(f64 a, f64 b) { return f64_add(a, b); }

/* 16 -> 8 (i with i + 8) -> 4 -> 2 -> 1 */
template <class T> REE_INLINE T ree_tree(T (&lanes)[REE_LANES])
{
#pragma unroll
    for (int half = REE_LANES / 2; half > 0; half /= 2)
#pragma unroll
        for (int l = 0; l < half; l++)
            lanes[l] = ree_plus(lanes[l], lanes[l + half]);
    return lanes[0];
}

/* What was summed above the chunks: of each level how many sums came, and their 16 lanes. */
template <class T> struct ree_sums {
    T lanes[REE_LEVELS][REE_LANES];
    i32 counts[REE_LEVELS];

    __device__ ree_sums()
    {
        for (int level = 0; level < REE_LEVELS; level++) {
            counts[level] = 0;
            for (int l = 0; l < REE_LANES; l++)
                lanes[level][l] = T(0);
        }
    }

    /* Add a sum to the lowest level; a level that has 256 gives its sum to the next. */
    __device__ void push(T value)
    {
        for (int level = 0; level < REE_LEVELS; level++) {
            T &lane = lanes[level][counts[level] % REE_LANES];
            lane = ree_plus(lane, value);
            if (++counts[level] < REE_CHUNK)
                return;
            value = ree_tree(lanes[level]);
            counts[level] = 0;
            for (int l = 0; l < REE_LANES; l++)
                lanes[level][l] = T(0);
        }
    }

    /* Fold what every level holds; empty levels add +0, which changes nothing. */
    __device__ T finish()
    {
        T value = T(0);
        for (int level = 0; level < REE_LEVELS; level++) {
            T &lane = lanes[level][counts[level] % REE_LANES];
            lane = ree_plus(lane, value);
            value = ree_tree(lanes[level]);
        }
        return value;
    }
};

/* -- by one thread ----------------------------------------------------------------------------------- */
template <class T, class F> REE_INLINE T ree_sum_chunk(i64 start, i64 end, F f)
{
    T lanes[REE_LANES];
#pragma unroll
    for (int l = 0; l < REE_LANES; l++)
        lanes[l] = T(0);
#pragma unroll 1
    for (i64 k = start; k < end; k += REE_LANES)
#pragma unroll
        for (int l = 0; l < REE_LANES; l++)
            if (k + l < end)
                lanes[l] = ree_plus(lanes[l], f(k + l));
    return ree_tree(lanes);
}

template <class T, class F> REE_INLINE T ree_sum(i64 n, F f)
{
    if (n <= REE_CHUNK)
        return ree_sum_chunk<T>(0, n, f);
    ree_sums<T> sums;
#pragma unroll 1
    for (i64 k = 0; k < n; k += REE_CHUNK)
        sums.push(ree_sum_chunk<T>(k, n - k < REE_CHUNK ? n : k + REE_CHUNK, f));
    return sums.finish();
}

/* f(k, a, b) gives the factors. A chain from +0 over each chunk; chunk sums are added in order. */
template <class F> REE_INLINE f32 ree_dot_chunk(i64 start, i64 end, F f)
{
    f32 chain = 0.0f;
    for (i64 k = start; k < end; k++) {
        f32 a, b;
        f(k, a, b);
        chain = f32_fma(a, b, chain);
    }
    return chain;
}

template <class F> REE_INLINE f32 ree_dot(i64 n, F f)
{
    f32 total = 0.0f;
#pragma unroll 1
    for (i64 k = 0; k < n; k += REE_CHUNK)
        total = f32_add(total, ree_dot_chunk(k, n - k < REE_CHUNK ? n : k + REE_CHUNK, f));
    return total;
}

/* An order-free fold; join(a, b) joins two partial results. */
template <class T, class F, class J> REE_INLINE T ree_reduce(i64 n, T neutral, F f, J join)
{
    T result = neutral;
    for (i64 k = 0; k < n; k++)
        result = join(result, f(k));
    return result;
}

/* -- by a block ---------------------------------------------------------------------------------------- */
enum { REE_FOLD_BYTES = 8 * (REE_CHUNK + REE_WARP) }; /* shared memory of a block's folds */

/* Sum over the 16 threads of a half-warp, each holding a lane. */
template <class T> REE_INLINE T ree_half_tree(T lane)
{
#pragma unroll
    for (int step = REE_LANES / 2; step > 0; step /= 2)
        lane = ree_plus(lane, __shfl_xor_sync(REE_ALL_LANES, lane, step));
    return lane;
}

/* Sum of up to 256 values that lie in shared memory, by every half-warp. */
template <class T> REE_INLINE T ree_shared_sum(const T *values, int n)
{
    T lane = T(0);
    for (int k = static_cast<int>(threadIdx.x % REE_LANES); k < n; k += REE_LANES)
        lane = ree_plus(lane, values[k]);
    __syncwarp();
    return ree_half_tree(lane);
}

/* Sum of elements k0 .. min(k0 + 65536, n): its chunks by half-warps, then their sums. */
template <class T, int AHEAD, class F> REE_INLINE T ree_block_sum_chunks(i64 k0, i64 n, T *sums, F f)
{
    const i64 left = (n - k0 + REE_CHUNK - 1) / REE_CHUNK;
    const int chunks = left < REE_CHUNK ? static_cast<int>(left) : REE_CHUNK;
    const int halves = static_cast<int>(blockDim.x / REE_LANES), half = static_cast<int>(threadIdx.x / REE_LANES);
    for (int first = 0; first < chunks; first += halves) {
        const i64 start = k0 + static_cast<i64>(first + half) * REE_CHUNK;
        const i64 end = first + half >= chunks ? start : n - start < REE_CHUNK ? n : start + REE_CHUNK;
        T lane = T(0);
#pragma unroll AHEAD
        for (i64 k = start + threadIdx.x % REE_LANES; k < end; k += REE_LANES)
            lane = ree_plus(lane, f(k));
        __syncwarp();
        lane = ree_half_tree(lane);
        if (threadIdx.x % REE_LANES == 0 && first + half < chunks)
            sums[first + half] = lane;
    }
    __syncthreads();
    const T total = ree_shared_sum(sums, chunks);
    __syncthreads();
    return total;
}

template <class T, int AHEAD, class F> REE_INLINE T ree_block_sum(i64 n, void *shared, F f)
{
    T *sums = static_cast<T *>(shared);
    if (n <= REE_CHUNK * REE_CHUNK)
        return ree_block_sum_chunks<T, AHEAD>(0, n, sums, f);
    ree_sums<T> above;
#pragma unroll 1
    for (i64 k = 0; k < n; k += REE_CHUNK * REE_CHUNK)
        above.push(ree_block_sum_chunks<T, AHEAD>(k, n, sums, f));
    return above.finish();
}

/* Chains by threads, a chunk each. */
template <class F> REE_INLINE f32 ree_block_dot(i64 n, void *shared, F f)
{
    f32 *sums = static_cast<f32 *>(shared);
    const int at_once = static_cast<int>(blockDim.x) < REE_CHUNK ? static_cast<int>(blockDim.x) : REE_CHUNK;
    const int thread = static_cast<int>(threadIdx.x);
    f32 total = 0.0f;
#pragma unroll 1
    for (i64 k = 0; k < n; k += static_cast<i64>(at_once) * REE_CHUNK) {
        const i64 start = k + static_cast<i64>(thread) * REE_CHUNK;
        const i64 end = n - start < REE_CHUNK ? n : start + REE_CHUNK;
        if (thread < at_once && start < n)
            sums[thread] = ree_dot_chunk(start, end, f);
        __syncthreads();
        for (int c = 0; c < at_once && k + static_cast<i64>(c) * REE_CHUNK < n; c++)
            total = f32_add(total, sums[c]);
        __syncthreads();
    }
    return total;
}

REE_INLINE i32 ree_shuffle(i32 a, int mask) { return __shfl_xor_sync(REE_ALL_LANES, a, mask); }
REE_INLINE u32 ree_shuffle(u32 a, int mask) { return __shfl_xor_sync(REE_ALL_LANES, a, mask); }
REE_INLINE i64 ree_shuffle(i64 a, int mask) { return __shfl_xor_sync(REE_ALL_LANES, a, mask); }
REE_INLINE u64 ree_shuffle(u64 a, int mask) { return __shfl_xor_sync(REE_ALL_LANES, a, mask); }
REE_INLINE f32 ree_shuffle(f32 a, int mask) { return __shfl_xor_sync(REE_ALL_LANES, a, mask); }
REE_INLINE f64 ree_shuffle(f64 a, int mask) { return __shfl_xor_sync(REE_ALL_LANES, a, mask); }
REE_INLINE bool ree_shuffle(bool a, int mask) { return __shfl_xor_sync(REE_ALL_LANES, static_cast<i32>(a), mask) != 0; }

template <class T, int AHEAD, class F, class J>
REE_INLINE T ree_block_reduce(i64 n, void *shared, T neutral, F f, J join)
{
    T *parts = static_cast<T *>(shared);
    T result = neutral;
#pragma unroll AHEAD
    for (i64 k = threadIdx.x; k < n; k += blockDim.x)
        result = join(result, f(k));
    __syncwarp();
#pragma unroll
    for (int step = REE_WARP / 2; step > 0; step /= 2)
        result = join(result, ree_shuffle(result, step));
    if (threadIdx.x % REE_WARP == 0)
        parts[threadIdx.x / REE_WARP] = result;
    __syncthreads();
    result = neutral;
    for (int warp = 0; warp < static_cast<int>(blockDim.x / REE_WARP); warp++)
        result = join(result, parts[warp]);
    __syncthreads();
    return result;
}

#endif
