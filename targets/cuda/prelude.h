// What the kernels that TVM prints need besides the language, so that no header has to be found.
typedef unsigned int uint;
typedef unsigned short ushort;

// Tells the compiler that an operand begins at a multiple of sixteen bytes.
#define DSV3C_ALIGNED(operand) operand = (decltype(operand))__builtin_assume_aligned(operand, 16)

// float32 of the float16 in the low half of `bits`.
static __device__ __forceinline__ float dsv3c_f16(uint bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((ushort)bits));
    return value;
}

// (word & mask) | bits.
static __device__ __forceinline__ uint dsv3c_and_or(uint word, uint mask, uint bits) {
    uint both;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(both) : "r"(word), "r"(mask), "r"(bits));
    return both;
}

// What the thread has whose number differs in the bit `mask`, below 32; all threads of the warp come here.
static __device__ __forceinline__ float dsv3c_shuffle_xor(float value, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
static __device__ __forceinline__ int dsv3c_shuffle_xor(int value, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}

// What no architecture before sm_80 has; forms of kernels that call it are not launched there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define DSV3C_SM_80(...) asm volatile("trap;")
#else
#define DSV3C_SM_80(...) __VA_ARGS__
#endif

// Two float32 rounded to bfloat16, to nearest even, `low` in the low half.
static __device__ __forceinline__ uint dsv3c_bf16x2(float low, float high) {
    uint pair = 0;
    DSV3C_SM_80(asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low)));
    return pair;
}

// d[16, 8] += a[16, 16] * b[16, 8] by the threads of a warp, bfloat16 times bfloat16 in float32. What each thread has of
// them is in the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
static __device__ __forceinline__ void dsv3c_mma_bf16(float* d, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
    DSV3C_SM_80(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                             : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1)));
}
