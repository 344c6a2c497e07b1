"""What decides a simulation, from the command line and from presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.simulation.tilts import SCHEMES, TiltSeries, read_tilts, tilt_scheme

CHOICES = {
    "mode": ("tilt_series", "xulab"),
    "neighbour_classes": ("all", "others"),
    "tilt_scheme": SCHEMES,
    "ctf_correction": ("none", "phase_flip"),
}


@dataclass(frozen=True)
class SimulationSettings:
    """Everything that decides a simulated volume besides the structures and its class and number.

    Attributes
    ----------
    mode : {"tilt_series", "xulab"}
        Images of a tilt series and their weighted back-projection, or one 3-D transfer function and a wedge.
    box : int
        Edge of the subtomograms in voxels, even.
    voxel_size : float
        Å.
    resolution : float
        Å of the structures; 0 for twice the voxel size. Never finer than the voxels hold; see `low_pass`.
    snr : float
        Variance of the signal over variance of the noise; ``inf`` leaves the noise out. Defined in docs/simulation.md.
    seed : int
        Same seed, same data.
    neighbours : int
        Particles packed around the target.
    neighbour_classes : {"all", "others"}
        Whether a neighbour may be of the target's class.
    max_shift : float
        Largest shift of the target from the box centre along each axis, in voxels.
    max_tilt_deg, tilt_step_deg : float
        The tilt series runs from minus to plus the one by the other.
    tilt_scheme : {"dose_symmetric", "bidirectional", "continuous"}
        Order of exposure.
    tilts : str
        File of the tilts of a real series (.tlt, .rawtlt, .mdoc) instead.
    dose_per_tilt : float
        Electrons/Å^2; the specimen fades with the dose. 0: it does not.
    dose_weighting : bool
        Weight the images by what the dose left of their frequencies.
    voltage_kv, spherical_aberration_mm, amplitude_contrast, phase_shift_deg : float
        Of the microscope.
    defocus_um : float
        Underfocus.
    defocus_spread_um : float
        Volumes are drawn from ``defocus_um`` plus or minus this.
    defocus_tilt_um : float
        Standard deviation, from tilt to tilt, of the defocus.
    ctf_correction : {"none", "phase_flip"}
        What the reconstruction does about the contrast transfer.
    alignment_error : float
        Standard deviation in Å, along each image axis, of the shift of every image that alignment left.
    envelope : float
        Mode xulab: standard deviation of the Gaussian envelope in units of the Nyquist frequency.
    """

    mode: str = "tilt_series"
    box: int = 32
    voxel_size: float = 10.0
    resolution: float = 0.0
    snr: float = 0.1
    seed: int = 0
    neighbours: int = 4
    neighbour_classes: str = "all"
    max_shift: float = 2.0
    max_tilt_deg: float = 60.0
    tilt_step_deg: float = 3.0
    tilt_scheme: str = "dose_symmetric"
    tilts: str = ""
    dose_per_tilt: float = 3.0
    dose_weighting: bool = True
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: float = 0.07
    phase_shift_deg: float = 0.0
    defocus_um: float = 4.0
    defocus_spread_um: float = 1.0
    defocus_tilt_um: float = 0.05
    ctf_correction: str = "phase_flip"
    alignment_error: float = 2.0
    envelope: float = 0.4

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"simulation: {name} {getattr(self, name)!r} is none of {', '.join(known)}")
        rules = {
            "box": (self.box >= 8 and self.box % 2 == 0, "even, 8 or more"),
            "voxel_size": (self.voxel_size > 0, "above 0"),
            "resolution": (self.resolution >= 0, "0 or more"),
            "snr": (self.snr > 0, "above 0, or inf"),
            "seed": (self.seed >= 0, "0 or more"),
            "neighbours": (0 <= self.neighbours <= 64, "0 to 64"),
            "max_shift": (0 <= self.max_shift <= self.box / 4, "0 to a quarter of the box"),
            "max_tilt_deg": (0 < self.max_tilt_deg <= 90, "above 0, at most 90"),
            "tilt_step_deg": (0 < self.tilt_step_deg <= self.max_tilt_deg, "above 0, at most max_tilt_deg"),
            "dose_per_tilt": (self.dose_per_tilt >= 0, "0 or more"),
            "voltage_kv": (50 <= self.voltage_kv <= 1000, "50 to 1000"),
            "spherical_aberration_mm": (self.spherical_aberration_mm >= 0, "0 or more"),
            "amplitude_contrast": (0 <= self.amplitude_contrast <= 1, "0 to 1"),
            "defocus_um": (self.defocus_um > 0, "above 0"),
            "defocus_spread_um": (0 <= self.defocus_spread_um < self.defocus_um, "0 or more, below defocus_um"),
            "defocus_tilt_um": (self.defocus_tilt_um >= 0, "0 or more"),
            "alignment_error": (self.alignment_error >= 0, "0 or more"),
            "envelope": (self.envelope > 0, "above 0"),
        }
        broken = [
            f"{name}={getattr(self, name)} (must be {rule})"
            for name, (kept, rule) in rules.items()
            if not kept or (name != "snr" and not math.isfinite(getattr(self, name)))
        ]
        if broken:
            raise InputError(f"simulation: impossible {', '.join(broken)}")

    @property
    def low_pass_resolution(self) -> float:
        """Resolution in Å that the structures are filtered to."""
        return self.resolution or 2 * self.voxel_size

    def as_json(self) -> dict[str, Any]:
        """Names and values for JSON, which knows no infinity: then the SNR is the text "inf". See `settings_from`.

        The resolution is the one that was used, also where 0 stands for it.
        """
        snr = self.snr if math.isfinite(self.snr) else "inf"
        return {**asdict(self), "snr": snr, "resolution": self.low_pass_resolution}

    def tilt_series(self) -> TiltSeries:
        """Tilts and doses, from the file `tilts` if there is one."""
        if self.tilts:
            return read_tilts(self.tilts, scheme=self.tilt_scheme, dose_per_tilt=self.dose_per_tilt)
        return tilt_scheme(
            max_tilt_deg=self.max_tilt_deg,
            tilt_step_deg=self.tilt_step_deg,
            scheme=self.tilt_scheme,
            dose_per_tilt=self.dose_per_tilt,
        )


def settings_from(
    values: Mapping[str, Any], start: SimulationSettings | None = None, *, source: str = "simulation"
) -> SimulationSettings:
    """Make settings of names and values, which may be texts.

    Parameters
    ----------
    values : mapping
        Those that differ from `start`.
    start : SimulationSettings, optional
        The defaults, without.
    source : str
        Where the values come from, for messages.

    Raises
    ------
    InputError
        For unknown names, values of another kind, and impossible ones.
    """
    start = start or SimulationSettings()
    kinds = {field.name: type(getattr(start, field.name)) for field in fields(start)}
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            near = get_close_matches(name.lower(), kinds, n=1)
            raise InputError(f"{source}: no setting {name}" + (f"; did you mean {near[0]}?" if near else ""))
        changed[name] = _converted(name, value, kinds[name], source)
    return replace(start, **changed)


def _converted(name: str, value: Any, kind: type, source: str) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if kind is int and not isinstance(value, str) and int(value) != value:
            raise ValueError
        return kind(value)
    except (KeyError, TypeError, ValueError):
        wanted = {bool: "True or False", int: "a whole number", float: "a number"}[kind]
        raise InputError(f"{source}: {name} {value!r}: give {wanted}") from None
