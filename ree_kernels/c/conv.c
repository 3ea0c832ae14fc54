/* Convolution: blocks of pixels through all of k, outputs in column panels of packed weights.
 *
 * Loops, outside in: blocks of rows; groups; chunks of 256 k, whose operands are gathered into scratch
 * in the register tile's layout (never a whole im2col); panels; register tiles. */
#include "conv.h"
#include "conv_channels.h"
#include "conv_input.h"
#include "tile_next.h"

enum { BLOCK_ROWS = 8 * REE_MR };

static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t ree_conv_block_rows(void) { return BLOCK_ROWS; }

int64_t ree_conv_scratch_bytes(const ree_conv_args *a)
{
    const int by_channels = conv_by_channels(a->channels, a->outputs, a->groups);
    const int64_t floats = by_channels ? channels_scratch_floats(a->channels, conv_taps(a))
                                       : BLOCK_ROWS * TILE_A_ROW + conv_stage_floats(a, BLOCK_ROWS);
    return BLOCK_ROWS * (int64_t)sizeof(conv_pixel) + floats * (int64_t)sizeof(float) + 64;
}

/* -- weights ------------------------------------------------------------------------------ */

/* Panels of one group; a box that starts within a panel reads past its end by up to a panel's row. */
static int64_t group_floats(int64_t channels, int64_t outputs, int64_t groups, int64_t taps)
{
    return round_up(outputs / groups, REE_NR) * (channels / groups) * taps;
}

int64_t ree_pack_conv_floats(int64_t channels, int64_t outputs, int64_t groups, int64_t taps)
{
    if (conv_by_channels(channels, outputs, groups))
        return channels / groups * taps * outputs;
    return groups * group_floats(channels, outputs, groups, taps) + REE_NR;
}

int ree_pack_conv(float *packed, int64_t channels, int64_t outputs, int64_t groups, int64_t taps, const float *weights,
                  int64_t transposed)
{
    if (groups < 1 || channels % groups || outputs % groups)
        return 1;
    const int64_t ins = channels / groups, outs = outputs / groups;
    const int by_channels = conv_by_channels(channels, outputs, groups);
    if (!by_channels)
        memset(packed, 0, (size_t)ree_pack_conv_floats(channels, outputs, groups, taps) * sizeof *packed);
    for (int64_t o = 0; o < outputs; o++) {
        const int64_t g = o / outs, j = o % outs;
        float *group = packed + g * group_floats(channels, outputs, groups, taps);
        float *to = group + j / REE_NR * REE_NR * ins * taps + j % REE_NR;
        for (int64_t i = 0; i < ins; i++) {
            const float *from = weights + (transposed ? (g * ins + i) * outs + j : o * ins + i) * taps;
            for (int64_t t = 0; t < taps; t++) {
                const int64_t k = t * ins + i;
                if (by_channels)
                    packed[k * outputs + o] = from[t];
                else
                    to[k * REE_NR] = from[t];
            }
        }
    }
    return 0;
}

/* -- blocks ------------------------------------------------------------------------------- */

/* Rows of a block, columns [c0, c1) of one group (numbers within it), `out` at the group's first. */
static void group_block(const conv_source *s, const float *w, int64_t c0, int64_t c1, float *out, float *block)
{
    const ree_conv_args *a = s->a;
    const int64_t depth = a->channels / a->groups * conv_taps(a);
    tile_args t = {.a = block, .c_row = a->out_row};
    for (int64_t k0 = 0; k0 == 0 || k0 < depth; k0 += REE_CHUNK) {
        t.k_count = conv_min(depth - k0, REE_CHUNK);
        t.flags = (k0 == 0 ? TILE_FIRST : 0) | (k0 + t.k_count == depth && !a->epilogue ? TILE_CANONICAL : 0);
        conv_pack_chunk(s, k0, k0 + t.k_count, block, TILE_A_ROW);
        for (int64_t c = c0; c < c1;) {
            const int64_t panel = c - c % REE_NR, end = conv_min(panel + REE_NR, c1);
            t.b = w + panel * depth + k0 * REE_NR + (c - panel);
            t.c = out + c;
            /* the next panel's chunk, or this chunk's successor in the first panel (a fetch may miss) */
            const float *first = w + (c0 - c0 % REE_NR) * depth;
            const float *next = end < c1 ? t.b + REE_NR * depth : first + (k0 + REE_CHUNK) * REE_NR;
            panel_tiles(t, s->rows, end - c, next, REE_NR * sizeof *next);
            c = end;
        }
    }
}

static void block_of_rows(const ree_conv_args *a, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    conv_pixel *pixels = scratch;
    float *block = (float *)(((uintptr_t)(pixels + BLOCK_ROWS) + 63) & ~(uintptr_t)63);
    float *out = a->out + r0 * a->out_row;
    conv_pixels(a, r0, r1, pixels);
    if (conv_by_channels(a->channels, a->outputs, a->groups)) {
        channels_box(a, pixels, r1 - r0, c0, c1, out, block);
    } else {
        const int64_t ins = a->channels / a->groups, outs = a->outputs / a->groups;
        conv_source s = {.a = a, .pixels = pixels, .rows = r1 - r0};
        s.stage = block + BLOCK_ROWS * TILE_A_ROW;
        for (int64_t g = c0 / outs; g <= (c1 - 1) / outs; g++) {
            const float *w = a->w + g * group_floats(a->channels, a->outputs, a->groups, conv_taps(a));
            s.x = a->x + g * ins * a->x_c;
            group_block(&s, w, conv_max(c0 - g * outs, 0), conv_min(c1 - g * outs, outs), out + g * outs, block);
        }
    }
    if (a->epilogue)
        a->epilogue(a->epilogue_args, r0, r1, c0, c1, scratch);
}

void ree_conv(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    if (c0 >= c1)
        return;
    for (int64_t r = r0; r < r1; r += BLOCK_ROWS)
        block_of_rows(args, r, conv_min(r + BLOCK_ROWS, r1), c0, c1, scratch);
}
