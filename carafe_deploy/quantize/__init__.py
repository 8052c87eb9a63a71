"""Exported ONNX detectors with convolutions and linear layers in 8 bits.

Explicit quantization: QuantizeLinear and DequantizeLinear, put in by ONNX Runtime's quantizer, with
ranges found here. Needs the onnx and onnxruntime packages.
"""
