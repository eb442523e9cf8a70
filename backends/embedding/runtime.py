"""ONNX Runtime without its telemetry, as embedders ask for it."""

from backends.onnx_runtime import errors, onnxruntime

__all__ = ["errors", "onnxruntime"]
