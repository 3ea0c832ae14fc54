/* Asynchronous copies: the target is poisoned when one is begun, and written when it is waited for. */
#ifndef REE_EMULATOR_COPIES_H
#define REE_EMULATOR_COPIES_H

#include "faults.h"

static bool is_within(const char *start, u64 size, const char *address, u32 bytes)
{
    return address >= start && address + bytes <= start + size;
}

static bool is_shared(const Worker &w, const char *address, u32 bytes)
{
    return is_within(ree_here.shared, static_cast<u64>(w.launch->shared_bytes), address, bytes) ||
           is_within(w.static_shared, w.launch->static_bytes, address, bytes);
}

void ree_copy_later(void *shared, const void *global, u32 bytes, bool inside)
{
    Worker &w = *ree_here.worker;
    char *target = static_cast<char *>(shared);
    const char *source = inside ? static_cast<const char *>(global) : nullptr;
    if (reinterpret_cast<uintptr_t>(target) % bytes != 0 || reinterpret_cast<uintptr_t>(source) % bytes != 0)
        fail("ree_copy_async%u from %p to %p: misaligned", bytes, global, shared);
    if (!is_shared(w, target, bytes) || (inside && is_shared(w, source, bytes)))
        fail("ree_copy_async%u from %p to %p: not from device memory to shared memory", bytes, global, shared);
    memset(target, POISON, bytes);
    Copies &copies = w.copies[ree_here.thread.x];
    copies.pending.push_back({target, source, bytes, copies.committed});
    w.has_copies = true;
}

void ree_copies_commit(void)
{
    Worker &w = *ree_here.worker;
    w.copies[ree_here.thread.x].committed++;
    w.has_copies = true;
}

void ree_copies_wait(int groups_left)
{
    Copies &copies = ree_here.worker->copies[ree_here.thread.x];
    size_t done = 0;
    for (; done < copies.pending.size(); done++) {
        const Copy &copy = copies.pending[done];
        if (copy.group + static_cast<u32>(groups_left) >= copies.committed)
            break;
        if (copy.global == nullptr)
            memset(copy.shared, 0, copy.bytes);
        else
            memcpy(copy.shared, copy.global, copy.bytes);
    }
    copies.pending.erase(copies.pending.begin(), copies.pending.begin() + static_cast<i64>(done));
}

static void forget_copies(Worker &w)
{
    if (!w.has_copies)
        return;
    for (Copies &copies : w.copies) {
        copies.pending.clear();
        copies.committed = 0;
    }
    w.has_copies = false;
}

#endif
