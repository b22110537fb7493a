"""Detectors as files that run without this package: ONNX, OpenVINO, ExecuTorch, torch.export."""

from .exporting import FORMATS, export_model

__all__ = ["FORMATS", "export_model"]
