"""New particle lists in RELION's, Dynamo's, the CryoET Data Portal's and plain formats, whatever they came from."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.particles.dynamo import column_names
from cryo_monai.particles.poses import zxz_angles, zyz_angles
from cryo_monai.particles.relion import ANGLES, CENTRED, PLAIN, SCORE
from cryo_monai.particles.star import star_block
from cryo_monai.particles.table import Particles

Array = npt.NDArray[np.float64]


def write_particles(path: str | os.PathLike[str], particles: Particles) -> Path:
    """Write a new list of particles; the same data give the same bytes.

    Parameters
    ----------
    path : path
        Its ending tells the format. ``.star``: RELION 4, with the pixel size in ``rlnTomoTiltSeriesPixelSize``, or
        RELION 5 for centred coordinates. ``.csv``: id, tomogram, x, y, z and what else is known. ``.tbl``: Dynamo, from
        1, with a ``.doc`` that names the tomograms beside it unless they are numbers, and class names in
        ``<name>_classes.csv``. ``.ndjson``: points of the CryoET Data Portal.
    particles : Particles
        From any format.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    InputError
        For another ending, for centred coordinates of tomograms of unknown size (except ``.star``), or when some
        pixel sizes are known and some are not.
    """
    path = Path(path)
    texts = {".star": _star, ".csv": _csv, ".tbl": _dynamo, ".ndjson": _ndjson}
    suffix = path.suffix.lower()
    if suffix not in texts:
        raise InputError(f"{path}: unknown ending {suffix!r}; particle lists are written as {', '.join(texts)}")
    unknown = np.isnan(particles.pixel_size)
    if unknown.any() and not unknown.all():
        raise InputError(f"{path}: {int(unknown.sum())} of {len(particles)} particles have no pixel size")
    files = {path: texts[suffix](particles)}
    if suffix == ".tbl":
        files |= _dynamo_companions(path, particles)
    for file, text in files.items():
        atomic_write_text(file, text)
    return path


# Columns that say where a particle is, how it is turned, or which file holds it: wrong in a list of other boxes.
_PLACES = re.compile(
    r"rln(Centered)?Coordinate.*|rlnOrigin.*|rlnAngle.*|rlnTomoSubtomogram.*|rln(Detector|Image|Micrograph|Tomo.*)?PixelSize"
    r"|rlnMagnification|rlnImage.*|rlnCtfImage|rlnOpticsGroup.*|rlnTomoName|rlnTomoParticleName|[xyz]|d[xyz]|id|tomogram"
    r"|orig_[xyz]|daxis|dnarot|dshift|[xyz]_shift|phi|psi|the|rot|tilt|tdrot|narot|pixel_size|location.*|transformation_.*"
    r"|xyz_rotation_matrix|[XYZ] \[(A|Å)\]"
)


def further_columns(particles: Particles) -> dict[str, list[str]]:
    """Return the columns of a list that say neither place, pose, pixel size nor file, for a list of other boxes."""
    return {
        str(name): [str(text) for text in particles.columns[name]]
        for name in particles.columns
        if not _PLACES.fullmatch(str(name))
    }


def decimal(value: float) -> str:
    """Return a number with six decimals, without a negative zero."""
    text = f"{value:.6f}"
    return text[1:] if text.strip("-0.") == "" and text[0] == "-" else text


def significant(value: float) -> str:
    """Return a number with seven digits, however small it is."""
    return f"{value:.7g}"


def delimited_text(rows: Sequence[Sequence[str]], *, delimiter: str = ",", end: str = "\n") -> str:
    """Return rows as delimited text, in quotes where needed."""
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator=end).writerows(rows)
    return stream.getvalue()


def _columns(coordinates: Array, names: Sequence[str]) -> dict[str, list[str]]:
    """Return columns of x, y, z under these names."""
    return {name: [decimal(value) for value in coordinates[:, 2 - axis]] for axis, name in enumerate(names)}


def _angles(particles: Particles) -> dict[str, list[str]]:
    if particles.rotations is None:
        return {}
    angles = zyz_angles(particles.rotations)
    return {name: [decimal(value) for value in angles[:, n]] for n, name in enumerate(ANGLES)}


def _numbered(ids: Sequence[str]) -> bool:
    return list(ids) == [str(number) for number in range(1, len(ids) + 1)]


def _star(particles: Particles) -> str:
    columns: dict[str, list[str]] = {}
    if any(particles.tomograms):
        columns["rlnTomoName"] = particles.tomograms
    if not _numbered(particles.ids):
        columns["rlnTomoParticleName"] = particles.ids
    coordinates = particles.coordinates
    optics = ""
    if particles.centred:
        columns |= _columns(coordinates * particles.pixel_size[:, None], CENTRED)
    else:
        columns |= _columns(coordinates, PLAIN)
        sizes, groups = np.unique(particles.pixel_size, return_inverse=True)
        if not np.isnan(sizes).any():
            columns["rlnOpticsGroup"] = [str(group + 1) for group in groups]
            optics = _optics(sizes)
    columns |= _angles(particles)
    if any(particles.class_names):
        columns["cryomonaiClassName"] = particles.class_names
    if particles.scores is not None:
        columns[SCORE] = [significant(score) for score in particles.scores]
    return optics + star_block("particles", columns | _added(particles, columns))


def _added(particles: Particles, columns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the further columns of a list that was made here; those of a file might contradict the new ones."""
    if particles.format != "new":
        return {}
    return {name: list(particles.columns[name]) for name in particles.columns if name not in columns}


def _optics(sizes: Array) -> str:
    numbers = [str(number) for number in range(1, len(sizes) + 1)]
    columns = {
        "rlnOpticsGroup": numbers,
        "rlnOpticsGroupName": [f"opticsGroup{number}" for number in numbers],
        "rlnTomoTiltSeriesPixelSize": [repr(float(size)) for size in sizes],
    }
    return star_block("optics", columns) + "\n\n"


def _from_corner(particles: Particles) -> Array:
    """Return coordinates that count from the first voxel.

    Raises
    ------
    InputError
        When they count from the centre of a tomogram whose size is not known.
    """
    if not particles.centred:
        return particles.coordinates
    centres = np.empty((len(particles), 3))
    for row, name in enumerate(particles.tomograms):
        record = particles.tomogram_files.get(name)
        if record is None or record.shape is None or record.voxel_size is None:
            raise InputError(
                f"coordinates count from the centre of tomogram {name!r}, whose size is not known; "
                "read the optimisation set, or write a .star file"
            )
        centres[row] = np.array(record.shape) / 2 * record.voxel_size / particles.pixel_size[row]
    return particles.coordinates + centres


def _csv(particles: Particles) -> str:
    columns = {"id": particles.ids, "tomogram": particles.tomograms, **_columns(_from_corner(particles), "xyz")}
    if not np.isnan(particles.pixel_size).any():
        columns["pixel_size"] = [repr(float(size)) for size in particles.pixel_size]
    columns |= _angles(particles)
    if any(particles.class_names):
        columns["class_name"] = particles.class_names
    if particles.scores is not None:
        columns["score"] = [significant(score) for score in particles.scores]
    columns |= _added(particles, columns)
    return delimited_text([list(columns), *(list(row) for row in zip(*columns.values(), strict=True))])


def _ndjson(particles: Particles) -> str:
    lines = []
    named = not _numbered(particles.ids)
    for row, (z, y, x) in enumerate(_from_corner(particles)):
        place = {"x": round(float(x), 6), "y": round(float(y), 6), "z": round(float(z), 6)}
        content: dict[str, object] = {"type": "point", "location": place}
        if particles.rotations is not None:
            content["type"] = "orientedPoint"
            content["xyz_rotation_matrix"] = particles.rotations[row][::-1, ::-1].tolist()
        if named:
            content["id"] = particles.ids[row]
        if particles.tomograms[row]:
            content["tomogram"] = particles.tomograms[row]
        if not np.isnan(particles.pixel_size[row]):
            content["pixel_size"] = float(particles.pixel_size[row])
        if particles.class_names[row]:
            content["class_name"] = particles.class_names[row]
        if particles.scores is not None:
            content["score"] = float(significant(particles.scores[row]))
        lines.append(json.dumps(content, ensure_ascii=False) + "\n")
    return "".join(lines)


def _integers(texts: Sequence[str]) -> bool:
    """Whether texts are whole numbers as Dynamo would write them: '1', not '001'."""
    return all(text.isascii() and text.isdigit() and text == str(int(text)) for text in texts)


def _tomogram_numbers(particles: Particles) -> dict[str, str]:
    names = list(dict.fromkeys(particles.tomograms))
    if _integers(names):
        return {name: name for name in names}
    return {name: str(number) for number, name in enumerate(names, 1)}


def class_numbers_of(names: Sequence[str]) -> dict[str, int]:
    """Return the number of each class name, from 1 in alphabetical order; no name and "unknown" are 0."""
    known = sorted(set(names) - {"", "unknown"})
    return {"": 0, "unknown": 0} | {name: number for number, name in enumerate(known, 1)}


def _tags(particles: Particles) -> list[str]:
    return particles.ids if _integers(particles.ids) else [str(n) for n in range(1, len(particles) + 1)]


def _dynamo(particles: Particles) -> str:
    count = len(particles)
    # Through column 36, the pixel size.
    columns = {name: ["0"] * count for name in column_names(36)}
    tomograms, classes = _tomogram_numbers(particles), class_numbers_of(particles.class_names)
    columns["tag"] = _tags(particles)
    columns["aligned"] = columns["averaged"] = ["1"] * count
    columns["tomo"] = [tomograms[name] for name in particles.tomograms]
    columns["class"] = [str(classes[name]) for name in particles.class_names]
    columns |= _columns(_from_corner(particles) + 1, "xyz")
    if particles.rotations is not None:
        angles = -zxz_angles(particles.rotations)
        # -phi, -the, -psi; see dynamo.py.
        columns |= {name: [decimal(v) for v in angles[:, n]] for n, name in enumerate(("narot", "tilt", "tdrot"))}
    if particles.scores is not None:
        columns["cc"] = [significant(score) for score in particles.scores]
    if not np.isnan(particles.pixel_size).any():
        columns["apix"] = [repr(float(size)) for size in particles.pixel_size]
    return "".join(" ".join(row) + "\n" for row in zip(*columns.values(), strict=True))


def _dynamo_companions(path: Path, particles: Particles) -> dict[Path, str]:
    """Return the files that hold the names, which a table of numbers cannot."""
    files = {}
    tomograms = _tomogram_numbers(particles)
    # A map that lay there before would name these tomograms wrongly.
    map_file = path.with_suffix(".doc")
    if map_file.exists() or any(number != name for name, number in tomograms.items()):
        lines = [f"{number} {name or 'unknown'}\n" for name, number in tomograms.items()]
        files[map_file] = "".join(lines)
    if any(particles.class_names):
        classes = class_numbers_of(particles.class_names)
        named = zip(_tags(particles), particles.class_names, strict=True)
        rows = [[tag, str(classes[name]), name] for tag, name in named]
        files[path.with_name(f"{path.stem}_classes.csv")] = delimited_text([["id", "class", "class_name"], *rows])
    return files
