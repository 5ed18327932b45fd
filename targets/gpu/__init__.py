"""What the GPU targets share: kernels in TIR, their grids, and how planned graphs become calls of them."""
