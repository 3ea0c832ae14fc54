/* Convolution in many small groups, above all depthwise: a thread computes the outputs of a few pixels from memory.
 *
 * Such a convolution does few FMAs for each operand, so memory is the bound, and a tile would be mostly padding. Lanes
 * walk along output channels, which lie side by side; a weight is read once for REE_CONV_PIXELS pixels, and
 * neighbouring pixels find their common operands in L1. The order, padding and macros are those of conv.cu.
 *
 * REE_CONV_FOURS: one input and one output channel a group; a thread computes four of them.
 */
#include "ree.cuh"
#include "epilogue.cuh"
#include "fours.cuh"
#include "conv_places.cuh"

#ifndef REE_CONV_PIXELS
#define REE_CONV_PIXELS 4
#endif

struct ree_conv_direct_args {
    const f32 *x;
    const f32 *w;     /* [taps * channels][all outputs] */
    const i32 *table; /* tap -> conv_tap */
    i64 rows, taps;
    i64 channels, outputs; /* of a group */
    i64 all_outputs;
    i64 x_n, x_c, x_stride[3], x_shape[3], out_shape[3], stride[3], pad[3];
    ree_epilogue_args e;
};

enum {
    PIXELS = REE_CONV_PIXELS,
#ifdef REE_CONV_FOURS
    WIDTH = 4
#else
    WIDTH = 1
#endif
};

/* WIDTH floats side by side, or zeros. */
REE_INLINE void conv_load(f32 (&to)[WIDTH], const f32 *from, bool inside)
{
#ifdef REE_CONV_FOURS
    const float4 v = inside ? *reinterpret_cast<const float4 *>(from) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
#else
    to[0] = inside ? *from : 0.0f;
#endif
}

/* The pixels of rows row, row + 1, ...; behind the last row it is again. */
REE_INLINE void conv_pixels(const ree_conv_direct_args &a, i64 row, conv_pixel (&pixels)[PIXELS])
{
#pragma unroll
    for (int p = 0; p < PIXELS; p++)
        pixels[p] = conv_pixel_of(a, row + p < a.rows ? row + p : a.rows - 1);
}

struct conv_chains {
    f32 chain[PIXELS][WIDTH], total[PIXELS][WIDTH];

    __device__ void add_chunk()
    {
#pragma unroll
        for (int p = 0; p < PIXELS; p++)
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                total[p][i] = f32_add(total[p][i], chain[p][i]);
                chain[p][i] = 0.0f;
            }
    }
};

/* What a tap of some pixels reads. */
struct conv_reach {
    const f32 *x; /* at the tap, where the pixel's offset is to be added */
    bool inside[PIXELS];

    __device__ conv_reach(const ree_conv_direct_args &a, const f32 *x, const conv_pixel (&pixels)[PIXELS], i32 number)
    {
        const conv_tap tap = conv_unpack(reinterpret_cast<const int4 *>(a.table)[number]);
        this->x = x + conv_offset(a, tap);
#pragma unroll
        for (int p = 0; p < PIXELS; p++)
            inside[p] = conv_is_inside(a, pixels[p].place, tap);
    }
};

/* The chains go on by one k. */
REE_INLINE void conv_step(conv_chains &c, const conv_reach &reach, const conv_pixel (&pixels)[PIXELS], const f32 *w,
                          i64 channel_offset)
{
    f32 weight[WIDTH];
    conv_load(weight, w, true);
#pragma unroll
    for (int p = 0; p < PIXELS; p++) {
        f32 operand[WIDTH];
        conv_load(operand, reach.x + pixels[p].offset + channel_offset, reach.inside[p]);
#pragma unroll
        for (int i = 0; i < WIDTH; i++)
            c.chain[p][i] = f32_fma(operand[i], weight[i], c.chain[p][i]);
    }
}

/* Three blocks of a multiprocessor are enough: registers are for loads that are in flight. */
#ifdef REE_EMULATED
#define BOUNDS 128
#else
#define BOUNDS 128, 3
#endif

REE_KERNEL(ree_conv_direct, ree_conv_direct_args, BOUNDS)
{
    const i64 thread = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x, units = a.all_outputs / WIDTH;
    const i64 first_row = thread / units * PIXELS, output = thread % units * WIDTH;
    if (first_row >= a.rows)
        return;
    conv_pixel pixels[PIXELS];
    conv_pixels(a, first_row, pixels);
    conv_chains c;
#pragma unroll
    for (int p = 0; p < PIXELS; p++)
#pragma unroll
        for (int i = 0; i < WIDTH; i++)
            c.chain[p][i] = c.total[p][i] = 0.0f;
    const f32 *const x = a.x + output / a.outputs * a.channels * a.x_c, *const w = a.w + output;
#ifdef REE_CONV_FOURS
    for (i32 t = 0; t < a.taps; t += REE_CHUNK) {
        const i32 end = static_cast<i32>(a.taps - t < REE_CHUNK ? a.taps : t + REE_CHUNK);
#pragma unroll 3
        for (i32 i = t; i < end; i++) {
            const conv_reach reach(a, x, pixels, i);
            conv_step(c, reach, pixels, w + i * a.all_outputs, 0);
        }
        c.add_chunk();
    }
#else
    int left = REE_CHUNK; /* k's until the chunk ends */
    for (i32 t = 0; t < a.taps; t++) {
        const conv_reach reach(a, x, pixels, t);
#pragma unroll 4
        for (i64 channel = 0; channel < a.channels; channel++) {
            conv_step(c, reach, pixels, w + (t * a.channels + channel) * a.all_outputs, channel * a.x_c);
            if (--left == 0) {
                c.add_chunk();
                left = REE_CHUNK;
            }
        }
    }
    c.add_chunk();
#endif
#pragma unroll
    for (int p = 0; p < PIXELS; p++) {
        if (first_row + p >= a.rows || pixels[p].out < 0)
            continue;
#ifdef REE_CONV_FOURS
        ree_four four;
#pragma unroll
        for (int i = 0; i < WIDTH; i++)
            four.v[i] = ree_epilogue(a.e, pixels[p].out, output + i, c.total[p][i]);
        ree_store_four(a.e, pixels[p].out, output, a.all_outputs, four);
#else
        *ree_epilogue_at(a.e, pixels[p].out, output) = ree_epilogue(a.e, pixels[p].out, output, c.total[p][0]);
#endif
    }
}
