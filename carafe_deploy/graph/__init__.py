"""Export a detector: options, metadata, ONNX and TorchScript."""
