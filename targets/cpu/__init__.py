"""What the CPU targets share: kernels, packing and the emission of kernel libraries."""
