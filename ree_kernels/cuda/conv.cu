/* Convolution of up to three spatial axes as an implicit matrix product: rows are output pixels, columns output
 * channels.
 *
 * out[pixel, o] = dot over k of operand * weight, k = tap * channels + channel of the group, taps in C order of the
 * kernel; an operand outside the input is +0 and is multiplied. Operands are gathered straight into shared memory,
 * never a whole im2col. What a tap reads is a place relative to that of the pixel; k -> place stands in a table, so
 * that no thread divides by extents of the kernel.
 *
 * REE_CONV_FOURS: four k's lie side by side in x (channels last, a multiple of 4), aligned; else they come one by one.
 * REE_CONV_PADDED: some operand may be outside; else no place is checked. REE_CONV_TRANSPOSED: the pixel at y reads (y
 * + pad - tap * dilation) / stride where that divides evenly. With y + pad = stride * place + phase a tap has a phase
 * and a place, too: it is hit where the phases agree. Rows are ordered by phase, and a block of one phase leaves out
 * whole taps of others, if all weights are finite: +0 times such a weight changes no chain but the sign of a zero,
 * which adding it to a total that began at +0 takes away.
 */
#include "ree.cuh"
#include "epilogue.cuh"
#include "fours.cuh"
#include "dot_tile.cuh"
#include "conv_places.cuh"

struct ree_conv_args {
    const f32 *x;
    const f32 *w;       /* of each group [depth, w_row] */
    const i32 *table;   /* k -> conv_tap; for each fourth k with REE_CONV_FOURS */
    const i64 *finite;  /* whether all weights are */
    i64 rows;           /* transposed: of all phases, each with as many as the one with most */
    i64 channels, outputs, depth, w_row; /* of a group */
    i64 row_tiles, column_tiles;
    i64 x_n, x_c, x_stride[3], x_shape[3], out_shape[3], stride[3], pad[3];
    i64 chunks;         /* of a block, whose number along z tells the first one */
    i64 part_rows;      /* rows from the results of one z to those of the next */
    i64 totals_at;      /* bytes from the stages to the totals */
    ree_epilogue_args e;
};

enum { ROW_BYTES = TILE_ROWS * (8 + 8 + 16) };

/* What a block knows of its rows, in shared memory. */
struct conv_rows {
    i64 *offset;       /* elements from x to the operand of a tap at place 0, channel 0 */
    i64 *out;          /* output row, or -1 */
    conv_place *place;
};

REE_INLINE conv_rows conv_rows_at(char *shared)
{
    i64 *const offset = reinterpret_cast<i64 *>(shared), *const out = offset + TILE_ROWS;
    return {offset, out, reinterpret_cast<conv_place *>(out + TILE_ROWS)};
}

/* Copies of operands and weights for tile_dot. */
struct conv_operands {
    const ree_conv_args &a;
    conv_rows rows;
    const f32 *x; /* at the group's first channel */
    tile_b_copies w;
    conv_tap tap; /* of the thread's k in the slice that is loaded next */

    __device__ conv_tap tap_of(i32 entry) const
    {
        return conv_unpack(reinterpret_cast<const int4 *>(a.table)[entry]);
    }

    __device__ bool is_inside(int row, const conv_tap &t) const
    {
#ifdef REE_CONV_PADDED
        return conv_is_inside(a, rows.place[row], t);
#else
        return true;
#endif
    }

#ifdef REE_CONV_FOURS
    __device__ void prepare(i32 k) { tap = tap_of(k / 4 + static_cast<i32>(threadIdx.x % A_PIECES)); }

    __device__ void load_a(i32 k, f32 *to) const
    {
        enum { ROWS_APART = TILE_THREADS / A_PIECES };
        const int piece = static_cast<int>(threadIdx.x % A_PIECES), first = static_cast<int>(threadIdx.x / A_PIECES);
        const f32 *const from = x + conv_offset(a, tap);
        const bool exists = k + 4 * piece < w.depth;
#pragma unroll
        for (int n = 0; n < TILE_ROWS / ROWS_APART; n++) {
            const int row = first + n * ROWS_APART;
            ree_copy_async16(to + row * A_ROW + 4 * piece, from + rows.offset[row], exists & is_inside(row, tap));
        }
    }
#else
    __device__ void prepare(i32) {}

    /* Lanes walk along rows: neighbouring pixels, whose operands lie close. */
    __device__ void load_a(i32 k, f32 *to) const
    {
        enum { K_APART = TILE_THREADS >= TILE_ROWS ? TILE_THREADS / TILE_ROWS : 1 };
        enum { ROWS_APART = TILE_THREADS >= TILE_ROWS ? TILE_ROWS : TILE_THREADS };
        for (int step = static_cast<int>(threadIdx.x) / TILE_ROWS; step < REE_SLICE; step += K_APART) {
            const bool exists = k + step < w.depth;
            const conv_tap t = tap_of(k + step);
            const f32 *const from = x + conv_offset(a, t);
#pragma unroll
            for (int n = 0; n < TILE_ROWS / ROWS_APART; n++) {
                const int row = static_cast<int>(threadIdx.x) % TILE_ROWS + n * ROWS_APART;
                ree_copy_async4(to + row * A_ROW + step, from + rows.offset[row], exists & is_inside(row, t));
            }
        }
    }
#endif

    __device__ void load(i32 k, f32 *to_a, f32 *to_b) const
    {
        load_a(k, to_a);
        w.load(k, to_b);
    }
};

#ifdef REE_CONV_TRANSPOSED
/* Slices without those of taps of another phase than the block's. */
struct conv_slices {
    const ree_conv_args &a;
    i32 k, end, channel, phase;
    bool skips;

    __device__ void skip()
    {
        const int4 *const table = reinterpret_cast<const int4 *>(a.table);
#ifdef REE_CONV_FOURS
        enum { K_OF_ENTRY = 4 };
#else
        enum { K_OF_ENTRY = 1 };
#endif
        while (skips && k < end && conv_unpack(table[k / K_OF_ENTRY]).phase != phase)
            k += static_cast<i32>(a.channels) - channel, channel = 0;
    }

    __device__ void next()
    {
        k += REE_SLICE;
        channel += REE_SLICE;
        if (channel == a.channels) {
            channel = 0;
            skip();
        }
    }
};

/* Slices of one tap each are needed to leave out taps, and rows of one phase. */
REE_INLINE conv_slices conv_slices_of(const ree_conv_args &a, i32 k, i32 end, i64 row0)
{
    const i64 last = row0 + TILE_ROWS < a.rows ? row0 + TILE_ROWS - 1 : a.rows - 1;
    const i64 phase_rows = conv_phase_rows(a);
    const bool one_phase = row0 / phase_rows == last / phase_rows;
    const bool skips = one_phase && a.channels % REE_SLICE == 0 && a.finite[0] != 0;
    conv_slices slices = {a, k, end, static_cast<i32>(k % a.channels), conv_phase_of(a, row0 / phase_rows), skips};
    slices.skip();
    return slices;
}
#else
REE_INLINE tile_slices conv_slices_of(const ree_conv_args &, i32 k, i32 end, i64) { return {k, end}; }
#endif

REE_KERNEL(ree_conv, ree_conv_args, TILE_BOUNDS)
{
    char *const shared = ree_shared(), *const stages = shared + ROW_BYTES;
    f32 *const totals = reinterpret_cast<f32 *>(stages + a.totals_at);
    const conv_rows rows = conv_rows_at(shared);
    const tile_place tile = tile_place_of(blockIdx.x, a.row_tiles, a.column_tiles);
    const i64 group = blockIdx.y, part = blockIdx.z;
    for (int r = static_cast<int>(threadIdx.x); r < TILE_ROWS; r += TILE_THREADS) {
        const i64 row = tile.row + r < a.rows ? tile.row + r : a.rows - 1; /* copies of the last one are not stored */
        const conv_pixel pixel = conv_pixel_of(a, row);
        rows.offset[r] = pixel.offset;
        rows.out[r] = tile.row + r < a.rows ? pixel.out : -1;
        rows.place[r] = pixel.place;
    }
    __syncthreads();
    const i64 k = part * a.chunks * REE_CHUNK, k_end = k + a.chunks * REE_CHUNK;
    const tile_b_copies w(a.w + group * a.depth * a.w_row + tile.column, a.w_row, a.depth, a.w_row - tile.column);
    conv_operands operands = {a, rows, a.x + group * a.channels * a.x_c, w, {}};
    const i32 end = static_cast<i32>(k_end < a.depth ? k_end : a.depth);
    tile_dot(conv_slices_of(a, static_cast<i32>(k), end, tile.row), operands, stages, totals);
    const i64 column0 = group * a.outputs + tile.column;
    tile_store(a.e, totals, column0, (group + 1) * a.outputs, [&](int r) -> i64 {
        return rows.out[r] < 0 ? -1 : part * a.part_rows + rows.out[r];
    });
}
