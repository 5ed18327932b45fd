"""The x86-64 target: AVX2 and AVX-512, with VNNI where the CPU has it."""
