"""Computation: attention, cross entropy, LoRA layers, norms and rotary embeddings, for the CPU and for any device."""
