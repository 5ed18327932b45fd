"""Linking: the systems that libraries are built for, and the compiler driver that links for each."""
