// What the Metal Shading Language has and C++ lacks, as far as emitted kernels use it; threads are those of fibers.h.
//
// Functions have no templates where Metal has none, so that a call which Apple's compiler finds ambiguous is an error
// here, too. Threads of a SIMD group are WIDTH neighbours, as on every GPU of Apple.
#pragma once

#include <cmath>

#include "fibers.h"

namespace metal {

using half = _Float16;
using uint = unsigned int;
using ushort = unsigned short;
using uchar = unsigned char;

constexpr unsigned WIDTH = 32;

// --- vectors: as far as positions in a grid and packed scalars need them

template <class T>
struct Vector2 {
    T x, y;
};
template <class T>
struct Vector3 {
    T x, y, z;
};
using uint2 = Vector2<uint>;
using uint3 = Vector3<uint>;
using int2 = Vector2<int>;

// A place in the grid, with as many axes as a kernel asks for.
struct Position {
    shim::Index at;
    operator uint() const { return at.x; }
    operator uint2() const { return {at.x, at.y}; }
    operator uint3() const { return {at.x, at.y, at.z}; }
};

inline Position threadgroup_position_in_grid() { return {shim::launch.group}; }
inline Position thread_position_in_threadgroup() { return {{shim::launch.thread, 0, 0}}; }

// --- functions

template <class To, class From>
To as_type(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// select(a, b, c) is b where c holds.
#define OF_NUMBERS(T)                                \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; } \
    inline T select(T a, T b, bool c) { return c ? b : a; }
OF_NUMBERS(int)
OF_NUMBERS(uint)
OF_NUMBERS(float)
OF_NUMBERS(half)
#undef OF_NUMBERS

inline float floor(float x) { return std::floor(x); }
inline float sqrt(float x) { return std::sqrt(x); }
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline float exp(float x) { return std::exp(x); }
inline float fabs(float x) { return std::fabs(x); }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }

// --- barriers and SIMD groups

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };

using Place = std::source_location;

inline void threadgroup_barrier(mem_flags, Place place = Place::current()) { shim::wait(shim::EVERYONE, place); }
inline void simdgroup_barrier(mem_flags, Place place = Place::current()) { shim::wait(WIDTH, place); }

inline unsigned lane() { return shim::launch.thread % WIDTH; }

template <class T>
T simd_shuffle(T value, ushort source, Place place = Place::current()) {
    return shim::exchange(value, source, WIDTH, place);
}
template <class T>
T simd_shuffle_xor(T value, ushort mask, Place place = Place::current()) {
    return shim::exchange(value, lane() ^ mask, WIDTH, place);
}
// What comes from behind the last lane is undefined: poison.
template <class T>
T simd_shuffle_down(T value, ushort delta, Place place = Place::current()) {
    bool inside = lane() + delta < WIDTH;
    T got = shim::exchange(value, inside ? lane() + delta : lane(), WIDTH, place);
    if (!inside) memset(&got, shim::POISON, sizeof got);
    return got;
}
template <class T>
T simd_sum(T value, Place place = Place::current()) {
    for (ushort mask = 1; mask < WIDTH; mask *= 2) value = value + simd_shuffle_xor(value, mask, place);
    return value;
}
template <class T>
T simd_max(T value, Place place = Place::current()) {
    for (ushort mask = 1; mask < WIDTH; mask *= 2) value = max(value, simd_shuffle_xor(value, mask, place));
    return value;
}

// --- matrices of a SIMD group

// Every thread has all of what was loaded, but of results only its own two elements: the others are poison, so that
// whoever uses them without going through memory notices.
template <class T, int COLUMNS, int ROWS>
struct simdgroup_matrix {
    T at[ROWS][COLUMNS];
    simdgroup_matrix() { memset(static_cast<void*>(this), shim::POISON, sizeof *this); }
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;

struct ulong2 {
    unsigned long x, y;
    ulong2(int value) : x(static_cast<unsigned long>(value)), y(x) {}
};

template <class T, int COLUMNS, int ROWS>
simdgroup_matrix<T, COLUMNS, ROWS> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, COLUMNS, ROWS> filled;
    for (auto& row : filled.at)
        for (T& element : row) element = value;
    return filled;
}
template <class Source>
void simdgroup_load(simdgroup_float8x8& d, Source source, unsigned long stride, ulong2 origin = 0,
                    bool transposed = false, Place place = Place::current()) {
    shim::wait(WIDTH, place);
    for (unsigned long i = 0; i < 8; i++)
        for (unsigned long j = 0; j < 8; j++)
            d.at[transposed ? j : i][transposed ? i : j] = source[(origin.y + i) * stride + origin.x + j];
}
template <class Target>
void simdgroup_store(const simdgroup_float8x8& s, Target target, unsigned long stride, ulong2 origin = 0,
                     bool transposed = false, Place place = Place::current()) {
    shim::wait(WIDTH, place);
    for (unsigned long own = 2 * lane(); own < 2 * lane() + 2; own++) {
        unsigned long i = own / 8, j = own % 8;
        target[(origin.y + (transposed ? j : i)) * stride + origin.x + (transposed ? i : j)] = s.at[i][j];
    }
}
inline void simdgroup_multiply_accumulate(simdgroup_float8x8& d, const simdgroup_float8x8& a,
                                          const simdgroup_float8x8& b, const simdgroup_float8x8& c,
                                          Place place = Place::current()) {
    shim::wait(WIDTH, place);
    simdgroup_float8x8 found;
    for (unsigned own = 2 * lane(); own < 2 * lane() + 2; own++) {
        float sum = c.at[own / 8][own % 8];
        for (unsigned k = 0; k < 8; k++) sum = std::fma(a.at[own / 8][k], b.at[k][own % 8], sum);
        found.at[own / 8][own % 8] = sum;
    }
    d = found;
}

}  // namespace metal

// Last, so that the names stay usable above.
#define kernel static
#define device
#define constant const
#define thread
#define threadgroup
