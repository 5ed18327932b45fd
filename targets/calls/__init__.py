"""What targets with kernels of our own share: a plan of calls, what a call is named by, and what it costs."""
