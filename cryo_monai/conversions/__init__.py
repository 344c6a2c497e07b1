"""Volumes from one file format to another, voxel for voxel: MRC, NIfTI, NPY."""

from __future__ import annotations

from cryo_monai.conversions.converting import convert_volume
from cryo_monai.conversions.stored import TARGET_SUFFIXES, StoredVolume, read_stored_volume, write_stored_volume
from cryo_monai.conversions.trees import TreeConversion, convert_tree

__all__ = [
    "TARGET_SUFFIXES",
    "StoredVolume",
    "TreeConversion",
    "convert_tree",
    "convert_volume",
    "read_stored_volume",
    "write_stored_volume",
]
