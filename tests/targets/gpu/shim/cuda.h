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
#define DSV3C_ALIGNED(operand) \
    if (reinterpret_cast<uintptr_t>(operand) % 16) shim::fail("operand " #operand " does not begin at sixteen bytes")

inline float dsv3c_f16(uint bits) {
    ushort low = static_cast<ushort>(bits);
    _Float16 value;
    memcpy(&value, &low, sizeof value);
    return value;
}

inline uint dsv3c_and_or(uint word, uint mask, uint bits) { return (word & mask) | bits; }

inline uint dsv3c_bf16x2(float low, float high) {
    auto rounded = [](float value) {
        uint bits;
        memcpy(&bits, &value, sizeof bits);
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    };
    return rounded(low) | rounded(high) << 16;
}

#define OF_WORDS(T)                                                                                             \
    inline T dsv3c_shuffle_xor(T value, int mask,                                                               \
                               std::source_location place = std::source_location::current()) {                  \
        return shim::exchange(value, shim::launch.thread % shim::SIMD_WIDTH ^ mask, shim::SIMD_WIDTH, place);   \
    }
OF_WORDS(int)
OF_WORDS(float)
#undef OF_WORDS

// Fragments of matrices [16, 16] and [16, 8] as the PTX ISA spreads them over a warp.
inline void dsv3c_mma_bf16(float* d, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1,
                           std::source_location place = std::source_location::current()) {
    constexpr unsigned WARP = 32;
    const unsigned lane = shim::launch.thread % WARP, first = shim::launch.thread - lane, row = lane / 4;
    unsigned char* offered = shim::fibers[shim::launch.thread].offered;
    auto element = [](const uint* words, unsigned half) {
        uint bits = half ? words[0] & 0xFFFF0000 : words[0] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    };
    float a[2][16], b[2][16];  // rows `row` and `row` + 8 of a, the columns of this thread of b
    const uint a_words[4] = {a0, a1, a2, a3}, b_words[2] = {b0, b1};
    memcpy(offered, a_words, sizeof a_words);
    shim::wait(WARP, place);
    for (unsigned k = 0; k < 16; k++) {
        uint words[4];
        memcpy(words, shim::fibers[first + row * 4 + k % 8 / 2].offered, sizeof words);
        for (unsigned i = 0; i < 2; i++) a[i][k] = element(words + i + k / 8 * 2, k % 2);
    }
    shim::wait(WARP, place);
    memcpy(offered, b_words, sizeof b_words);
    shim::wait(WARP, place);
    for (unsigned k = 0; k < 16; k++) {
        for (unsigned j = 0; j < 2; j++) {
            uint words[2];
            memcpy(words, shim::fibers[first + (lane % 4 * 2 + j) * 4 + k % 8 / 2].offered, sizeof words);
            b[j][k] = element(words + k / 8, k % 2);
        }
    }
    shim::wait(WARP, place);
    for (unsigned at = 0; at < 4; at++) {
        double sum = d[at];
        for (unsigned k = 0; k < 16; k++) sum += static_cast<double>(a[at / 2][k]) * b[at % 2][k];
        d[at] = static_cast<float>(sum);
    }
}

// --- threads

inline void __syncthreads(std::source_location place = std::source_location::current()) {
    shim::wait(shim::EVERYONE, place);
}

inline shim::Index thread_index() { return {shim::launch.thread, 0, 0}; }

// Last, so that the names stay usable above.
#define blockIdx shim::launch.group
#define threadIdx thread_index()
