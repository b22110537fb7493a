"""Detectors as files that run without this package: ONNX, OpenVINO, ExecuTorch, torch.export.

Importing it imports nothing else, so that `runtime`, which needs a runtime and numpy alone, is taken without torch.
"""

from importlib import import_module

_HOME = {
    "FORMATS": "exporting",
    "ExportedDetector": "loading",
    "Exporter": "exporting",
    "PRECISIONS": "precision",
    "export_model": "exporting",
}

__all__ = ["FORMATS", "PRECISIONS", "ExportedDetector", "Exporter", "export_model"]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(_HOME)}")
