"""What computes: attention, cross entropy, LoRA's layers, norms and rotations, for the CPU and for any device."""
