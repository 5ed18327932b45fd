// What CUDA C++ has and C++ lacks, as far as emitted kernels use it; threads are those of fibers.h.
//
// Functions have no templates, as in CUDA, so that a call which nvcc finds ambiguous is an error here, too.
#pragma once

#include <cmath>

#include "fibers.h"

using uint = unsigned int;
using ushort = unsigned short;

// --- functions

#define OF_NUMBERS(T)                                \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
OF_NUMBERS(int)
OF_NUMBERS(uint)
OF_NUMBERS(float)
#undef OF_NUMBERS

// The prelude's, see targets/cuda/prelude.h.
inline float dsv3c_f16(uint bits) {
    ushort low = static_cast<ushort>(bits);
    _Float16 value;
    memcpy(&value, &low, sizeof value);
    return value;
}

// --- threads

inline void __syncthreads(std::source_location place = std::source_location::current()) {
    shim::wait(shim::EVERYONE, place);
}

inline shim::Index thread_index() { return {shim::launch.thread, 0, 0}; }

// Last, so that the names stay usable above.
#define blockIdx shim::launch.group
#define threadIdx thread_index()
