"""Models behind one protocol: transformers checkpoints, embedded bases, exact worlds."""
