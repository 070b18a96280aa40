"""The Triton kernels as compiled for a GPU, executed without one: see `emulator.emulator`."""
