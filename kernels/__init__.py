"""One operation per file: its definition in NumPy and its lowering to ONNX."""
