"""The command line: hf-detr."""
