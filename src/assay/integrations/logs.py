"""Reading training logs: of assay, of transformers, TensorBoard, W&B and Trackio, or plain tables."""
