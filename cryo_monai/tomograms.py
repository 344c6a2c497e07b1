"""Tomograms on disk, read by region: MRC mapped into memory, TIFF and OME-Zarr with the extra ``tomograms``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.mrc_header import HEADER_BYTES, NO_LIMIT, MRCHeader, read_mrc_header
from cryo_monai.tomogram_names import MRC_ENDINGS, TIFF_ENDINGS, TOMOGRAM_ENDINGS, ZARR_ENDINGS, tomogram_name

# Mapped at a time, at most; and what Linux maps around the rows of a section that are touched (large folios).
MAPPED_BYTES = 32 * 2**20
PAGES_AROUND = 2 * 2**20
ANGSTROMS = {
    "a": 1.0,
    "å": 1.0,
    "angstrom": 1.0,
    "nm": 10.0,
    "nanometer": 10.0,
    "um": 1e4,
    "µm": 1e4,
    "micrometer": 1e4,
}
Region = tuple[slice, slice, slice]
Loader = Callable[[Region], npt.NDArray[Any]]


@dataclass(frozen=True)
class Tomogram:
    """A tomogram that stays on disk.

    Attributes
    ----------
    path : Path
        The file, or the folder of a Zarr array.
    shape : tuple of int
        ``(z, y, x)``.
    voxel_size : float or None
        Å; None when the file does not say.
    load : callable
        Returns a region as an array of the file's type; see `read`.
    origin : tuple of float
        Where programs that show the tomogram put its first voxel, ``(z, y, x)`` in Å.
    """

    path: Path
    shape: tuple[int, int, int]
    voxel_size: float | None
    load: Loader
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def name(self) -> str:
        """File name without what `tomogram_name` takes off."""
        return tomogram_name(str(self.path))

    @property
    def state(self) -> tuple[str, str]:
        """Path, and a digest of the sizes and times of what is there: another one when the data may have changed."""
        files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        digest = hashlib.sha256()
        for file in files:
            status = file.stat()
            digest.update(f"{file.relative_to(self.path)} {status.st_size} {status.st_mtime_ns}\n".encode())
        return str(self.path.resolve()), digest.hexdigest()

    def read(self, start: Sequence[int], stop: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read a region `(z, y, x)` as float32; nothing of the file stays mapped afterwards.

        Parameters
        ----------
        start, stop : sequence of int
            Corners, ``0 <= start < stop <= shape``.

        Raises
        ------
        InputError
            When the file cannot be read there.
        """
        region = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
        try:
            data = np.array(self.load(region), dtype=np.float32, order="C")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: not readable at {tuple(start)} ({error})") from error
        return data


def open_tomogram(
    path: str | os.PathLike[str], *, voxel_size: float | None = None, permissive: bool = False
) -> Tomogram:
    """Open a tomogram from its header alone.

    Parameters
    ----------
    path : path
        MRC of any size (modes 0, 1, 2, 6, 12); TIFF, a stack of sections; OME-Zarr (its first, finest level, or the
        level that the path names, ``tomogram.zarr/1``) or a Zarr array of three dimensions.
    voxel_size : float, optional
        Å; goes before what the file says.
    permissive : bool
        Accept old MRC files; see `read_mrc`.

    Raises
    ------
    InputError
        One line naming the file and the reason: unreadable, compressed as a whole, not three-dimensional, not cubic
        voxels, or of a format whose library is not installed.
    """
    file = Path(path)
    if not file.exists():
        raise InputError(f"{file}: no such file")
    lower = str(file).lower()
    if voxel_size is not None and not voxel_size > 0:
        raise InputError(f"{file}: voxel size {voxel_size} must be positive")
    if lower.endswith((".gz", ".bz2")):
        raise InputError(f"{file}: a compressed tomogram cannot be read by region; decompress it first")
    if any(part.endswith(ZARR_ENDINGS) for part in lower.split(os.sep)):
        shape, sizes, load = _open_zarr(file)
        origin = (0.0, 0.0, 0.0)
    elif lower.endswith(TIFF_ENDINGS):
        shape, sizes, load = _open_tiff(file)
        origin = (0.0, 0.0, 0.0)
    elif lower.endswith(MRC_ENDINGS):
        header = read_mrc_header(file, permissive=permissive, max_bytes=NO_LIMIT)
        if header.volumes > 1:
            raise InputError(f"{file}: a stack of {header.volumes} volumes, not a tomogram")
        shape, sizes, load, origin = header.shape, header.voxel_size, _MRCRegions(file, header), header.origin
    else:
        raise InputError(f"{file}: unknown extension; tomograms end in {', '.join(TOMOGRAM_ENDINGS)}")
    if len(shape) != 3 or min(shape) < 2:
        raise InputError(f"{file}: shape {shape} is not one (z, y, x) volume")
    known = _cubic(file, sizes) if voxel_size is None else float(voxel_size)
    return Tomogram(file, (int(shape[0]), int(shape[1]), int(shape[2])), known, load, origin)


@dataclass(frozen=True)
class _MRCRegions:
    """Load regions of an MRC file."""

    file: Path
    header: MRCHeader

    def __call__(self, region: Region) -> npt.NDArray[Any]:
        header = self.header
        offset = HEADER_BYTES + header.extended_bytes
        row = header.disk_shape[2] * header.dtype.itemsize
        section = header.disk_shape[1] * row
        sections, rows, columns = (region[header.axes.index(axis)] for axis in range(3))
        data = np.empty([part.stop - part.start for part in (sections, rows, columns)], header.dtype)
        # Mapped anew for some sections at a time: mapped pages, and their neighbours, count as memory in use.
        step = max(1, MAPPED_BYTES // ((rows.stop - rows.start) * row + PAGES_AROUND))
        for start in range(sections.start, sections.stop, step):
            shape = (min(step, sections.stop - start), *header.disk_shape[1:])
            mapped = np.memmap(self.file, header.dtype, "r", offset + start * section, shape)
            data[start - sections.start :][: shape[0]] = mapped[:, rows, columns]
        return data.transpose(header.axes)


@dataclass(frozen=True)
class _TIFFRegions:
    """Load regions of a TIFF stack: mapped when it is stored in one piece, section by section otherwise."""

    file: Path
    sections: int
    mappable: bool

    def __call__(self, region: Region) -> npt.NDArray[Any]:
        tifffile = _library("tifffile", self.file)
        if self.mappable:
            return np.asarray(tifffile.memmap(self.file, mode="r")[region])
        with tifffile.TiffFile(self.file) as tiff:
            wanted = range(*region[0].indices(self.sections))
            return np.stack([tiff.series[0].pages[z].asarray()[region[1:]] for z in wanted])


@dataclass(frozen=True)
class _ZarrRegions:
    """Load regions of a Zarr array whose axes before the last three have length one."""

    folder: Path
    level: str
    lead: int

    def __call__(self, region: Region) -> npt.NDArray[Any]:
        node = _library("zarr", self.folder).open(str(self.folder / self.level), mode="r")
        return np.asarray(node[(0,) * self.lead + region])


def _cubic(file: Path, sizes: Sequence[float] | None) -> float | None:
    if sizes is None:
        return None
    if max(sizes) > 1.001 * min(sizes):
        shown = " x ".join(f"{size:g}" for size in sizes)
        raise InputError(
            f"{file}: voxels of {shown} Å (z, y, x) are not cubes; give the edge with --tomogram_voxel_size"
        )
    # Cell edges are stored as float32: six digits are what they hold.
    return float(f"{np.mean(sizes):.6g}")


def _library(name: str, file: Path) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{file}: needs the library {name}; pip install 'cryo-monai[tomograms]'") from None


def _open_tiff(file: Path) -> tuple[Sequence[int], Sequence[float] | None, Loader]:
    """Shape, voxel size (Å) and loader of a TIFF stack."""
    tifffile = _library("tifffile", file)
    try:
        with tifffile.TiffFile(file) as tiff:
            series = tiff.series[0]
            shape, mappable = series.shape, series.dataoffset is not None
            kind, metadata = series.dtype.kind, tiff.imagej_metadata or {}
            resolution = tiff.pages[0].tags.get("XResolution")
    except (tifffile.TiffFileError, IndexError, OSError) as error:
        raise InputError(f"{file}: not readable as TIFF ({error})") from error
    if kind not in "fiu" or len(shape) != 3 or shape[-1] in (3, 4):
        raise InputError(f"{file}: TIFF of shape {shape} and type {kind!r} is not a stack of grey sections")
    spacing = metadata.get("spacing")
    # ImageJ escapes letters beyond ASCII.
    named = str(metadata.get("unit", "")).replace("\\u00B5", "µ").replace("\\u00C5", "Å")
    unit = ANGSTROMS.get(named.lower())
    sizes = None
    if unit and spacing and resolution is not None and resolution.value[0]:
        in_plane = resolution.value[1] / resolution.value[0]
        sizes = (spacing * unit, in_plane * unit, in_plane * unit)
    return shape, sizes, _TIFFRegions(file, shape[0], mappable)


def _open_zarr(file: Path) -> tuple[Sequence[int], Sequence[float] | None, Loader]:
    """Shape, voxel size (Å) and loader of an OME-Zarr image, of one of its levels, or of a Zarr array."""
    zarr = _library("zarr", file)
    try:
        node = zarr.open(str(file), mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file}: not readable as Zarr ({error})") from error
    root, level, inner = node, file.name, ""
    if not hasattr(node, "shape"):
        levels = [entry["path"] for entry in _multiscale(node).get("datasets", [])]
        if not levels:
            raise InputError(f"{file}: a Zarr group without OME multiscales; name an array in it, such as {file}/0")
        level = inner = levels[0]
        node = node[level]
    else:
        root = zarr.open(str(file.parent), mode="r") if file.parent.suffix in ZARR_ENDINGS else None
    lead = len(node.shape) - 3
    if lead < 0 or any(n != 1 for n in node.shape[:lead]):
        raise InputError(f"{file}: shape {node.shape} is not one (z, y, x) volume")
    scale = _zarr_scale(_multiscale(root), level) if root is not None else None
    return node.shape[lead:], scale, _ZarrRegions(file, inner, lead)


def _multiscale(group: Any) -> Mapping[str, Any]:
    """Return the first multiscale image of a group: OME-Zarr 0.5 has it below ``ome``, 0.4 at the top."""
    attributes = dict(group.attrs)
    found = attributes.get("ome", attributes).get("multiscales") or [{}]
    first: Mapping[str, Any] = found[0]
    return first


def _zarr_scale(image: Mapping[str, Any], level: str) -> tuple[float, ...] | None:
    """Voxel size in Å, ``(z, y, x)``, when axes have units of length."""
    axes = [axis for axis in image.get("axes", []) if isinstance(axis, Mapping)]
    units = [ANGSTROMS.get(str(axis.get("unit", "")).lower()) for axis in axes if axis.get("type") == "space"]
    for entry in image.get("datasets", []):
        for transform in entry.get("coordinateTransformations", []):
            if entry.get("path") == level and transform.get("type") == "scale" and len(units) == 3 and all(units):
                return tuple(float(s) * float(u or 1) for s, u in zip(transform["scale"][-3:], units, strict=True))
    return None
