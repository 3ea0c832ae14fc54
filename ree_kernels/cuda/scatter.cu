/* Scatter: out[.., index[.., j, ..], ..] reduce= src[.., j, ..] along one axis, j ascending. `out` holds the input.
 *
 * All that changes one element is done by one thread, in order. A slice is a place along all other axes. Where slices
 * are many, a thread walks the writes of each. Where they are few, there is a thread for each write: the first one to
 * its target does all of them. It finds the others by looking at all indices, if these are few, or at once, if the
 * writes of a slice come sorted by target and j.
 */
#include "ree.cuh"
#include "values.cuh"

enum { SET, ADD, MUL, MIN, MAX };
#ifndef REE_SCATTER_REDUCE
#define REE_SCATTER_REDUCE 1 /* one of them */
#endif
#ifndef REE_SCATTER_AT_ONCE
#define REE_SCATTER_AT_ONCE 8 /* writes of a thread whose loads are under way */
#endif
enum { REDUCE = REE_SCATTER_REDUCE, AT_ONCE = REE_SCATTER_AT_ONCE };

/* One slice for each place in `shape` (rank axes); strides count elements, those along the axis are called step.
 * n: writes in a slice; extent: of out along the axis; a negative index counts from the end, one outside sets the
 * status and writes nothing. items: of sorted writes, target * 2^32 + j, slices items_slice apart (0: all have the
 * same). Threads are fewer than 2^32. */
struct ree_scatter_args {
    void *out;
    const i64 *index;
    const void *src;
    const u64 *items;
    i64 *status;
    i64 slices, n, extent, rank;
    i64 shape[8], out_stride[8], index_stride[8], src_stride[8];
    i64 out_step, index_step, src_step, items_slice;
};

/* Where a slice begins in out, index and src. */
struct ree_slice {
    i64 out, index, src;

    __device__ ree_slice(const ree_scatter_args &a, u32 number) : out(0), index(0), src(0)
    {
        u32 rest = number;
        for (int axis = static_cast<int>(a.rank) - 1; axis >= 0; axis--) {
            const u32 extent = static_cast<u32>(a.shape[axis]), at = rest % extent;
            rest /= extent;
            out += at * a.out_stride[axis];
            index += at * a.index_stride[axis];
            src += at * a.src_stride[axis];
        }
    }
};

/* The place that an index means, or -1. */
REE_INLINE i64 ree_place(const ree_scatter_args &a, i64 index)
{
    if (index >= -a.extent && index < a.extent)
        return index < 0 ? index + a.extent : index;
    *reinterpret_cast<volatile i64 *>(a.status) = 1;
    return -1;
}

#define REE_REDUCE(T)                                                                                                  \
    REE_INLINE T ree_reduced(T before, T x)                                                                            \
    {                                                                                                                  \
        switch (REDUCE) {                                                                                              \
            case SET: return T##_store(x);                                                                             \
            case ADD: return T##_store(T##_add(before, x));                                                            \
            case MUL: return T##_store(T##_mul(before, x));                                                            \
            case MIN: return T##_store(T##_min(before, x));                                                            \
            default: return T##_store(T##_max(before, x));                                                             \
        }                                                                                                              \
    }
REE_REDUCE(f32)
REE_REDUCE(i32)
REE_REDUCE(i64)


/* A thread walks a slice. */
template <class T> REE_INLINE void ree_scatter_walk(const ree_scatter_args &a)
{
    const u32 number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= a.slices)
        return;
    const ree_slice slice(a, number);
    T *out = static_cast<T *>(a.out) + slice.out;
    const T *src = static_cast<const T *>(a.src) + slice.src;
    for (i64 first = 0; first < a.n; first += AT_ONCE) {
        i64 places[AT_ONCE];
        T values[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const i64 j = first + i < a.n ? first + i : a.n - 1;
            places[i] = a.index[slice.index + j * a.index_step];
            values[i] = src[j * a.src_step];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const i64 place = ree_place(a, places[i]);
            if (first + i < a.n && place >= 0)
                out[place * a.out_step] = ree_reduced(out[place * a.out_step], values[i]);
        }
    }
}

/* A thread for each write, neighbours in neighbouring slices: the first to its target does all. */
template <class T> REE_INLINE void ree_scatter_search(const ree_scatter_args &a)
{
    const u32 thread = blockIdx.x * blockDim.x + threadIdx.x, slices = static_cast<u32>(a.slices);
    const i64 first = thread / slices;
    if (first >= a.n)
        return;
    const ree_slice slice(a, thread % slices);
    const i64 *index = a.index + slice.index;
    const i64 place = ree_place(a, index[first * a.index_step]);
    if (place < 0)
        return;
    const auto is_same = [&](i64 j) {
        const i64 other = index[j * a.index_step];
        return other == place || other == place - a.extent;
    };
#pragma unroll 4
    for (i64 j = 0; j < first; j++)
        if (is_same(j))
            return;
    T *out = static_cast<T *>(a.out) + slice.out + place * a.out_step;
    const T *src = static_cast<const T *>(a.src) + slice.src;
    T value = ree_reduced(*out, src[first * a.src_step]);
#pragma unroll 4
    for (i64 j = first + 1; j < a.n; j++)
        if (is_same(j))
            value = ree_reduced(value, src[j * a.src_step]);
    *out = value;
}

/* A thread for each sorted write: the first to its target does all; of `set` the last one alone. Neighbours are in
 * neighbouring slices where these have the same items, else in neighbouring writes. */
template <class T> REE_INLINE void ree_scatter_sorted(const ree_scatter_args &a)
{
    const u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= a.slices * a.n)
        return;
    const u32 inner = static_cast<u32>(a.items_slice == 0 ? a.slices : a.n), at_inner = thread % inner;
    const i64 number = a.items_slice == 0 ? at_inner : thread / inner;
    const i64 first = a.items_slice == 0 ? thread / inner : at_inner;
    const u64 *items = a.items + number * a.items_slice;
    const i64 place = static_cast<i64>(items[first] >> 32);
    if (place == a.extent) /* of indices outside */
        return;
    const i64 other = REDUCE == SET ? first + 1 : first - 1;
    if (other >= 0 && other < a.n && static_cast<i64>(items[other] >> 32) == place)
        return;
    const ree_slice slice(a, static_cast<u32>(number));
    T *out = static_cast<T *>(a.out) + slice.out + place * a.out_step;
    const T *src = static_cast<const T *>(a.src) + slice.src;
    T value = *out;
    bool is_same = true;
    for (i64 at = first; at < a.n && is_same; at += AT_ONCE) {
        u64 found[AT_ONCE];
        T values[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            found[i] = items[at + i < a.n ? at + i : first];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) /* of another target's write the element is loaded in vain */
            values[i] = src[static_cast<i64>(found[i] & 0xffffffffu) * a.src_step];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            is_same = at + i < a.n && static_cast<i64>(found[i] >> 32) == place;
            if (is_same)
                value = ree_reduced(value, values[i]);
        }
    }
    *out = value;
}

#define REE_SCATTER(name, T) REE_KERNEL(ree_scatter_##name##_##T, ree_scatter_args, 256) { ree_scatter_##name<T>(a); }
REE_SCATTER(walk, f32)
REE_SCATTER(walk, i32)
REE_SCATTER(walk, i64)
REE_SCATTER(search, f32)
REE_SCATTER(search, i32)
REE_SCATTER(search, i64)
REE_SCATTER(sorted, f32)
REE_SCATTER(sorted, i32)
REE_SCATTER(sorted, i64)
