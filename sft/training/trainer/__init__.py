"""transformers.Trainer with our loss, our batches, our evaluation and complete checkpoints."""
