"""What a device runs: numpy, onnxruntime, pillow, tokenizers. No torch, no transformers."""
