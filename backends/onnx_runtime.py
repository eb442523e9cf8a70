"""ONNX Runtime, imported the only way it may be: without its telemetry.

Its wheels carry Microsoft's telemetry, on by default: the import alone leaves
an identifier of the machine and a database in the user's cache folder, and a
thread sends them home. The variable counts only if it is set before the
import; one that the user has set stays as it is.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime  # after the variable, as said above
from onnxruntime.capi import onnxruntime_pybind11_state as errors

__all__ = ["ERRORS", "errors", "onnxruntime"]

# They have no base class of their own.
ERRORS = (
    errors.EPFail,
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)
