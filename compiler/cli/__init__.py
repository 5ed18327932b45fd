"""The command line: a thin layer over the compiler and the runtime."""
