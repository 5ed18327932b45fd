// What the kernels that TVM prints need besides the language, so that no header has to be found.
typedef unsigned int uint;
typedef unsigned short ushort;

// float32 of the float16 in the low half of `bits`.
static __device__ __forceinline__ float dsv3c_f16(uint bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((ushort)bits));
    return value;
}
