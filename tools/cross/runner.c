/* Runs one exported plan (tools/cross/job.py) on the processor that this is compiled for.
 *
 *   runner JOB OUT [THREADS]      runs the steps and writes the output buffers, one after another, to OUT
 *
 * The job is a table of 64-bit little-endian words, then the image: memory with the argument structs, integers,
 * constants and inputs of the plan. All that depends on the instruction set is made here: packed weights, scratch,
 * addresses.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "attention_cached.h"
#include "conv.h"
#include "experts.h"
#include "matmul.h"
#include "matmul_i8.h"
#include "probe.h"
#include "reduce.h"
#include "runtime.h"
#include "sort.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || __SIZEOF_POINTER__ != 8
#error "argument structs are laid out for 64-bit little-endian processors"
#endif

/* Made by tools/cross/build.py: the kernels that steps and relocations name by number. */
extern const ree_kernel ree_symbols[];
extern const int64_t ree_symbol_count;

typedef struct {
    char magic[8];
    int64_t image_bytes, memory_bytes; /* memory beyond the image is zero */
    int64_t packs, relocations, steps, outputs;
} header;

enum { PACK_MATMUL, PACK_CONV, PACK_MATMUL_BF16, PACK_MATMUL_I8 };
typedef struct {
    int64_t kind, source;
    int64_t n, k, source_k, source_col, matrices, source_matrix; /* matrices, packed one after another */
    int64_t channels, outputs, groups, taps, transposed;         /* convolution */
} pack;

enum { TO_MEMORY, TO_PACK, TO_KERNEL };
typedef struct {
    int64_t where, kind, number, offset;
} relocation;

enum {
    SCRATCH_FIXED,
    SCRATCH_MATMUL,
    SCRATCH_CONV,
    SCRATCH_ATTENTION,
    SCRATCH_SORT,
    SCRATCH_REDUCE,
    SCRATCH_MATMUL_I8,
    SCRATCH_EXPERTS,
    SCRATCH_CACHED,
};
typedef struct {
    int64_t symbol, args, rows, cols, row_grain, col_grain;
    int64_t scratch_kind, scratch_bytes;
    int64_t joined; /* runs as one with the step before */
} step;

typedef struct {
    int64_t offset, size_bytes;
} output;

static void fail(const char *what)
{
    fprintf(stderr, "runner: %s\n", what);
    exit(2);
}

static void *allocate(int64_t bytes)
{
    void *memory = ree_alloc(bytes > 64 ? bytes : 64);
    if (!memory)
        fail("no memory");
    return memory;
}

static void *read_table(FILE *file, int64_t count, size_t size)
{
    void *table = allocate(count * (int64_t)size);
    if (count && fread(table, size, (size_t)count, file) != (size_t)count)
        fail("the job is cut short");
    return table;
}

static void *pack_matrices(const pack *p, const char *memory)
{
    const int64_t item = p->kind == PACK_MATMUL ? 4 : p->kind == PACK_MATMUL_BF16 ? 2 : 1;
    const int64_t bytes = p->kind == PACK_MATMUL        ? ree_pack_b_floats(p->n, p->k) * 4
                          : p->kind == PACK_MATMUL_BF16 ? ree_pack_bf16_words(p->n, p->k) * 2
                                                        : ree_pack_b_i8_bytes(p->n, p->k);
    char *packed = allocate(p->matrices * bytes);
    for (int64_t i = 0; i < p->matrices; i++) {
        void *to = packed + i * bytes;
        const void *from = memory + p->source + i * p->source_matrix * item;
        const ree_pack_b_args floats = {to, from, p->n, p->k, p->source_k, p->source_col};
        const ree_pack_bf16_args words = {to, from, p->n, p->k, p->source_k, p->source_col};
        const ree_pack_b_i8_args bytes_of = {to, from, p->n, p->k, p->source_k, p->source_col};
        if (p->kind == PACK_MATMUL)
            ree_pack_b_box(&floats, 0, 1, 0, p->n, NULL);
        else if (p->kind == PACK_MATMUL_BF16)
            ree_pack_bf16_box(&words, 0, 1, 0, p->n, NULL);
        else
            ree_pack_b_i8_box(&bytes_of, 0, 1, 0, p->n, NULL);
    }
    return packed;
}

static void *make_pack(const pack *p, const char *memory)
{
    if (p->kind != PACK_CONV)
        return pack_matrices(p, memory);
    float *packed = allocate(ree_pack_conv_floats(p->channels, p->outputs, p->groups, p->taps) * 4);
    const float *floats = (const float *)(memory + p->source);
    if (ree_pack_conv(packed, p->channels, p->outputs, p->groups, p->taps, floats, p->transposed))
        fail("weights cannot be packed");
    return packed;
}

static int64_t scratch_bytes(const step *s, const void *args)
{
    const ree_matmul_args *matmul = args;
    const ree_attention_args *attention = args;
    const ree_sort_args *sort = args;
    const ree_reduce_args *reduce = args;
    const ree_matmul_i8_args *matmul_i8 = args;
    const ree_experts_args *experts = args;
    const ree_cached_args *cached = args;
    const int64_t cols = s->cols < s->col_grain ? s->cols : s->col_grain;
    switch (s->scratch_kind) {
    case SCRATCH_MATMUL:
        return ree_matmul_scratch_bytes(s->row_grain, matmul->k, matmul->b_packed);
    case SCRATCH_CONV:
        return ree_conv_scratch_bytes(args);
    case SCRATCH_ATTENTION:
        return ree_attention_scratch_bytes(s->row_grain, attention->score_row, attention->d_v);
    case SCRATCH_SORT:
        return ree_sort_scratch_bytes(sort->n, sort->dtype);
    case SCRATCH_REDUCE:
        return ree_reduce_scratch_bytes(reduce->n);
    case SCRATCH_MATMUL_I8:
        return ree_matmul_i8_scratch_bytes(s->row_grain, matmul_i8->k);
    case SCRATCH_EXPERTS:
        return ree_experts_scratch_bytes(s->row_grain, cols, experts->k, experts->experts, experts->w_packed);
    case SCRATCH_CACHED:
        return ree_cached_scratch_bytes(s->row_grain, cached->context, cached->d_v);
    default:
        return s->scratch_bytes;
    }
}

static ree_kernel kernel(int64_t number)
{
    if (number < 0 || number >= ree_symbol_count)
        fail("the job names a kernel that is not linked");
    return ree_symbols[number];
}

static void relocate(const relocation *r, char *memory, void **packed)
{
    uint64_t value = 0;
    if (r->kind == TO_MEMORY)
        value = (uint64_t)(uintptr_t)(memory + r->offset);
    else if (r->kind == TO_PACK)
        value = (uint64_t)(uintptr_t)packed[r->number] + (uint64_t)r->offset;
    else
        value = (uint64_t)(uintptr_t)kernel(r->number);
    memcpy(memory + r->where, &value, sizeof value);
}

static ree_step both(ree_step first, ree_step second)
{
    ree_pair *pair = allocate(sizeof *pair);
    *pair = (ree_pair){first, second};
    return (ree_step){.kernel = ree_both, .args = pair, .rows = 1, .cols = ree_pair_boxes(pair), .row_grain = 1,
                      .col_grain = 1};
}

static void run(const step *steps, int64_t count, char *memory)
{
    ree_step *table = allocate(count * (int64_t)sizeof *table);
    int64_t rows = 0;
    for (int64_t i = 0; i < count; i++) {
        const step *s = &steps[i];
        const void *args = memory + s->args;
        const ree_step own = {.kernel = kernel(s->symbol), .args = args, .rows = s->rows, .cols = s->cols,
                              .row_grain = s->row_grain, .col_grain = s->col_grain,
                              .scratch_bytes = scratch_bytes(s, args)};
        if (s->joined && !rows)
            fail("the first step has none before it");
        if (s->joined)
            table[rows - 1] = both(table[rows - 1], own);
        else
            table[rows++] = own;
    }
    if (ree_run(table, rows))
        fail("the executor failed");
}

int main(int argc, char **argv)
{
    if (argc < 3 || ree_set_threads(argc > 3 ? atoi(argv[3]) : 1))
        fail("usage: runner JOB OUT [THREADS]");
    const char *wrong = ree_probe();
    if (wrong)
        fail(wrong);
    FILE *file = fopen(argv[1], "rb");
    header h;
    if (!file || fread(&h, sizeof h, 1, file) != 1 || memcmp(h.magic, "REEJOB1\n", 8))
        fail("no job");
    const pack *packs = read_table(file, h.packs, sizeof *packs);
    const relocation *relocations = read_table(file, h.relocations, sizeof *relocations);
    const step *steps = read_table(file, h.steps, sizeof *steps);
    const output *outputs = read_table(file, h.outputs, sizeof *outputs);
    char *memory = allocate(h.memory_bytes);
    memset(memory, 0, (size_t)h.memory_bytes);
    if (fread(memory, 1, (size_t)h.image_bytes, file) != (size_t)h.image_bytes)
        fail("the image is cut short");
    fclose(file);

    void **packed = allocate(h.packs * (int64_t)sizeof *packed);
    for (int64_t i = 0; i < h.packs; i++)
        packed[i] = make_pack(&packs[i], memory);
    for (int64_t i = 0; i < h.relocations; i++)
        relocate(&relocations[i], memory, packed);
    run(steps, h.steps, memory);

    FILE *out = fopen(argv[2], "wb");
    if (!out)
        fail("the output file cannot be written");
    for (int64_t i = 0; i < h.outputs; i++)
        if (fwrite(memory + outputs[i].offset, 1, (size_t)outputs[i].size_bytes, out) != (size_t)outputs[i].size_bytes)
            fail("the output file cannot be written");
    return fclose(out) ? 2 : 0;
}
