/* Where a convolution reads: places of output pixels and of taps in the input. Shared by the kernels of convolutions,
 * whose argument structs have fields of the same names (see conv.cu). */
#ifndef REE_CONV_PLACES_CUH
#define REE_CONV_PLACES_CUH

/* Coordinates in the input and, of a transposed convolution, the phase: for each axis modulo its stride, in C order. */
struct alignas(16) conv_place {
    i32 at[3];
    i32 phase;
};

/* A tap and a channel: the operand of a pixel is at the sum of both places, if their phases agree. */
struct conv_tap {
    i32 channel, phase;
    i32 at[3];
};

/* Of an output pixel: elements from x to its place (perhaps outside), its row in the output or -1, its place. */
struct conv_pixel {
    i64 offset, out;
    conv_place place;
};

/* An entry of the table: channel, phase, at[0] and at[1] of 16 bits each, at[2]. */
REE_INLINE conv_tap conv_unpack(int4 entry)
{
    return {entry.x, entry.y, {static_cast<i16>(entry.z & 0xffff), entry.z >> 16, entry.w}};
}

template <class Args> REE_INLINE i64 conv_offset(const Args &a, const conv_tap &t)
{
    return t.channel * a.x_c + t.at[0] * a.x_stride[0] + t.at[1] * a.x_stride[1] + t.at[2] * a.x_stride[2];
}

/* Without branches: it is asked for each operand. */
template <class Args> REE_INLINE bool conv_is_inside(const Args &a, conv_place p, const conv_tap &t)
{
    bool inside = true;
#pragma unroll
    for (int d = 0; d < 3; d++)
        inside &= static_cast<u32>(p.at[d] + t.at[d]) < static_cast<u32>(a.x_shape[d]);
#ifdef REE_CONV_TRANSPOSED
    inside &= p.phase == t.phase;
#endif
    return inside;
}

#ifdef REE_CONV_TRANSPOSED
/* Pixels of one phase of the output, along one axis. */
template <class Args> REE_INLINE u32 conv_phase_extent(const Args &a, int d)
{
    return static_cast<u32>((a.out_shape[d] + a.stride[d] - 1) / a.stride[d]);
}

template <class Args> REE_INLINE i64 conv_phase_rows(const Args &a)
{
    const i64 phases = a.stride[0] * a.stride[1] * a.stride[2];
    return a.rows / phases;
}

/* The phase of places that output coordinates with these remainders, in C order, have. */
template <class Args> REE_INLINE i32 conv_phase_of(const Args &a, i64 remainders)
{
    i32 phase = 0, scale = 1;
#pragma unroll
    for (int d = 2; d >= 0; d--) {
        const i32 stride = static_cast<i32>(a.stride[d]), remainder = static_cast<i32>(remainders % stride);
        remainders /= stride;
        phase += (remainder + static_cast<i32>(a.pad[d])) % stride * scale;
        scale *= stride;
    }
    return phase;
}

/* The pixel of a row; rows are in the order of phases, images, pixels. */
template <class Args> REE_INLINE conv_pixel conv_pixel_of(const Args &a, i64 row)
{
    const u32 phase_rows = static_cast<u32>(conv_phase_rows(a));
    u32 remainders = static_cast<u32>(row) / phase_rows, rest = static_cast<u32>(row) % phase_rows;
    conv_pixel pixel;
    pixel.place.phase = conv_phase_of(a, remainders);
    pixel.offset = pixel.out = 0;
    i64 scale = 1;
    bool exists = true;
#pragma unroll
    for (int d = 2; d >= 0; d--) {
        const u32 extent = conv_phase_extent(a, d), stride = static_cast<u32>(a.stride[d]);
        const u32 y = remainders % stride + rest % extent * stride;
        remainders /= stride;
        rest /= extent;
        exists = exists && y < a.out_shape[d];
        pixel.place.at[d] = static_cast<i32>((y + static_cast<u32>(a.pad[d])) / stride);
        pixel.offset += pixel.place.at[d] * a.x_stride[d];
        pixel.out += y * scale;
        scale *= a.out_shape[d];
    }
    pixel.offset += rest * a.x_n;
    pixel.out = exists ? pixel.out + rest * scale : -1;
    return pixel;
}
#else
/* The pixel of a row; rows are in the order of the output. */
template <class Args> REE_INLINE conv_pixel conv_pixel_of(const Args &a, i64 row)
{
    u32 rest = static_cast<u32>(row);
    conv_pixel pixel;
    pixel.out = row;
    pixel.offset = 0;
    pixel.place.phase = 0;
#pragma unroll
    for (int d = 2; d >= 0; d--) {
        const u32 extent = static_cast<u32>(a.out_shape[d]), y = rest % extent;
        rest /= extent;
        pixel.place.at[d] = static_cast<i32>(y * a.stride[d] - a.pad[d]);
        pixel.offset += pixel.place.at[d] * a.x_stride[d];
    }
    pixel.offset += rest * a.x_n;
    return pixel;
}
#endif

#endif
