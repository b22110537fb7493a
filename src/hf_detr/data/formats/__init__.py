"""Readers of annotation formats, one file each; `base` says what a format is."""
