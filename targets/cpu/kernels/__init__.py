"""The kernels of the CPU targets, written in TIR."""
