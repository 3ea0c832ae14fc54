/* Which thread of the block runs next.
 *
 * A fibre runs until its thread meets the others of its warp or block; then the next thread in the block's order runs.
 * A warp goes through as a whole: in each of its passes every lane runs once, and all must end it at the same meeting.
 * When that is the block's barrier, the next warp runs. The orders of lanes and of warps change from block to block, so
 * what depends on an order that CUDA does not promise goes wrong in some block.
 */
#ifndef REE_EMULATOR_THREADS_H
#define REE_EMULATOR_THREADS_H

#include "faults.h"

static u64 mix(u64 x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* 0 .. n - 1: shuffled, descending or ascending */
static void draw_order(u8 *order, int n, int rule, u64 seed)
{
    for (int i = 0; i < n; i++)
        order[i] = static_cast<u8>(rule == 1 ? n - 1 - i : i);
    for (int i = n - 1; rule == 0 && i > 0; i--) {
        seed = mix(seed + 0x9e3779b97f4a7c15ull);
        const int j = static_cast<int>(seed % static_cast<u64>(i + 1));
        const u8 kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

static void draw_orders(Worker &w, i64 block)
{
    const int rule = static_cast<int>((static_cast<u64>(block) + w.launch->seed) % 3);
    const u64 seed = mix(w.launch->seed * 0x100000001b3ull + static_cast<u64>(block));
    const int left = static_cast<int>(w.launch->block % LANES);
    draw_order(w.warp_order, w.warps, rule, seed);
    draw_order(w.lane_order[0], LANES, rule, seed + 1);
    draw_order(w.lane_order[1], left, rule, seed + 2);
}

static void enter_warp(Worker &w)
{
    w.warp = w.warp_order[w.warp_position];
    const int left = static_cast<int>(w.launch->block) - w.warp * LANES;
    w.lanes = left < LANES ? left : LANES;
    w.lane_at = w.lane_order[w.lanes < LANES];
    for (int lane = w.lanes; lane < LANES; lane++)
        w.values[0][lane] = w.values[1][lane] = ~0ull;
}

static int next_thread(const Worker &w) { return w.warp * LANES + w.lane_at[w.position]; }

/* The running thread has come to a meeting: which thread comes next. */
static void arrive(Worker &w, ree_meeting meeting)
{
    if (w.position == 0)
        w.meeting = meeting;
    else if (w.meeting != meeting)
        fail_apart(w.warp * LANES + w.lane_at[w.position - 1], w.meeting, meeting);
    if (++w.position < w.lanes)
        return;
    w.position = 0;
    if (meeting < REE_SYNCTHREADS) { /* the warp goes on */
        w.turn ^= 1;
        return;
    }
    if (w.warp_position == 0)
        w.block_meeting = meeting;
    else if (w.block_meeting != meeting)
        fail_apart(w.warp_order[w.warp_position - 1] * LANES, w.block_meeting, meeting);
    if (++w.warp_position == w.warps) { /* the block goes on */
        w.warp_position = 0;
        w.is_finished = meeting == REE_RETURN;
        w.phase ^= 1;
        w.counts[w.phase] = 0;
    }
    enter_warp(w);
}

static void fibre_main(void);

/* A stack for a thread that starts. The used ends of stacks lie apart, or they would share a cache's few sets. */
static void *start(Worker &w, int thread)
{
    if (w.stacks_free.empty()) {
        char *stack = map_guarded(FIBRE_STACK_BYTES);
        if (stack == nullptr)
            fail("no memory for a thread's stack");
        w.stacks_free.push_back(static_cast<int>(w.stacks.size()));
        w.stacks.push_back(stack);
    }
    const int stack = w.stacks_free.back();
    w.stacks_free.pop_back();
    w.stack_of[thread] = stack;
    return fibre_start(w.stacks[static_cast<size_t>(stack)] + FIBRE_STACK_BYTES - stack * 17 % 64 * 64, fibre_main);
}

static void meet(Worker &w, ree_meeting meeting)
{
    const int own = static_cast<int>(ree_here.thread.x);
    arrive(w, meeting);
    const int next = next_thread(w);
    if (next == own)
        return;
    ree_here.thread.x = static_cast<u32>(next);
    ree_fibre_switch(&w.saved[own], w.saved[next] == nullptr ? start(w, next) : w.saved[next]);
}

/* A fibre: a thread and, when that has returned, those that have not started. */
static void fibre_main(void)
{
    Worker &w = *ree_here.worker;
    void *nobody;
    for (;;) {
        w.launch->kernel->run(w.launch->args);
        const int own = static_cast<int>(ree_here.thread.x);
        arrive(w, REE_RETURN);
        const int next = next_thread(w);
        if (!w.is_finished && w.saved[next] == nullptr) {
            w.stack_of[next] = w.stack_of[own];
            ree_here.thread.x = static_cast<u32>(next);
            continue;
        }
        w.stacks_free.push_back(w.stack_of[own]);
        ree_here.thread.x = static_cast<u32>(next);
        ree_fibre_switch(&nobody, w.is_finished ? w.own_stack : w.saved[next]);
    }
}

#endif
