"""TensorRT engines: built from ONNX files ahead of time, described by a sidecar, opened again.

Only :mod:`~carafe_deploy.engine.onnx_model` and what builds on it need the onnx package; opening an
engine needs NumPy and TensorRT alone.
"""
