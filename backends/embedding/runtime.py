"""ONNX Runtime without its telemetry, as embedders ask for it."""

from backends.onnx_runtime import ERRORS, errors, onnxruntime

__all__ = ["ERRORS", "errors", "onnxruntime"]
