// What the builds that go wrong on purpose do (fdmoe_kernels/faults.py); the lost signal is where signals are given.
#pragma once
#include "params.cuh"

// As an item begins. `slow_us`: how long a tile of it is held up, for a fault that makes tiles slow.
DEVICE void go_wrong(const Params& p, const Item& item, int slow_us) {
#if FAULT == 2
    if (item.faulty)
        while (load_relaxed(p.control + NEVER) == 0) {
        }
#elif FAULT == 5
    if (item.phase == PHASE_UP || item.phase == PHASE_DOWN)
        for (int i = 0; i < slow_us; ++i) __nanosleep(1000);
#elif FAULT == 6
    if (item.faulty && load_relaxed(p.control + NEVER) == 0) *reinterpret_cast<volatile int*>(64) = 1;
#endif
}

// An output, in the launch's first tile of them.
DEVICE float spoilt(float value) {
#if FAULT == 3
    return __int_as_float(0x7fc00000);
#elif FAULT == 4
    return 1 - 2 * value;
#else
    return value;
#endif
}
