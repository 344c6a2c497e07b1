"""Atomic models: mmCIF and PDB files to the electrostatic potential of a biological assembly in ice."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError

Array = npt.NDArray[np.float32]

# h^2 / (2 pi m_e e): potential in V of a scattering density in 1/Å^2 (Kirkland 2010, chapter 5).
VOLT_PER_DENSITY = 47.878
# Electron scattering length of hydrogen at zero angle, in Å (International Tables C, table 4.3.2.2).
HYDROGEN_LENGTH = 0.529
# Vitreous ice of 0.93 g/cm3: 0.0311 molecules/Å^3 x (1.983 + 2 x 0.529) Å x 47.878 V Å^2.
ICE_VOLT = 4.53
# Probe and shrink radius, in Å, with which the molecular surface encloses the partial specific volume of protein,
# 1212 Å^3 per kDa (Erickson 2009): 1186 to 1211 for 1gme, 3hhb, 2cg9 and 1bxn.
SURFACE_PROBE = 0.5
# Atoms and solvent are sampled at least this finely, in Å, before they are low-passed.
FINEST_SPACING = 1.2
MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif", ".pdb.gz", ".ent.gz", ".cif.gz", ".mmcif.gz")


@dataclass(frozen=True)
class AtomicModel:
    """Atoms of a particle, centred on their centre of mass.

    Attributes
    ----------
    source : str
        File.
    assembly : str
        The biological assembly that was built, or ``"asu"``, with the reason when the file names none.
    chains : int
        Polymer chains.
    mass_kda : float
        Of all residues but water, hydrogens included.
    model : gemmi.Model
        Occupancies, 1 otherwise, account for hydrogens that are not in the file; the origin is the centre of mass.
    as_written : tuple of str
        Ligands that are not in the table of residues: no hydrogens were added to them.
    """

    source: str
    assembly: str
    chains: int
    mass_kda: float
    model: Any
    as_written: tuple[str, ...]

    @property
    def positions(self) -> npt.NDArray[np.float64]:
        """Atoms `(n, 3)` in Å, ``(z, y, x)`` about the centre of mass."""
        return np.asarray([atom.pos.tolist()[::-1] for chain in self.model for residue in chain for atom in residue])


def read_model(path: str | os.PathLike[str], *, assembly: str = "1", unknown_residues: str = "refuse") -> AtomicModel:
    """Read an mmCIF or PDB file, plain or gzipped, and build a biological assembly.

    Parameters
    ----------
    path : path
        File.
    assembly : str
        Name of the assembly in the file, or ``"asu"`` for the atoms as they are. A file that names no assembly gives
        its atoms as they are.
    unknown_residues : {"refuse", "as_written"}
        What becomes of polymer residues that are not in gemmi's table: an error, or their atoms without hydrogens.

    Returns
    -------
    AtomicModel
        First model of the file, without water.

    Raises
    ------
    InputError
        Naming the file, when it cannot be read, has no atoms, lacks the assembly, or has unknown residues or elements.
    """
    import gemmi

    if unknown_residues not in ("refuse", "as_written"):
        raise InputError(f"unknown_residues: {unknown_residues!r} is neither refuse nor as_written")
    try:
        structure = gemmi.read_structure(os.fspath(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: not a readable atomic model ({str(error).splitlines()[0]})") from error
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise InputError(f"{path}: an atomic model without atoms")
    structure.setup_entities()
    structure.remove_alternative_conformations()
    built = _build_assembly(structure, assembly, str(path))
    structure.remove_waters()  # after the assembly: its description may name chains of water
    while len(structure) > 1:
        del structure[1]
    model = structure[0]
    if model.count_atom_sites() == 0:
        raise InputError(f"{path}: an atomic model of nothing but water")
    mass, as_written = _account_for_hydrogens(model, str(path), refuse=unknown_residues == "refuse")
    centre = model.calculate_center_of_mass()
    for chain in model:
        for residue in chain:
            for atom in residue:
                atom.pos -= centre
    chains = sum(1 for chain in model if len(chain.get_polymer()) > 0)
    return AtomicModel(str(path), built, chains, mass / 1e3, model, as_written)


def _build_assembly(structure: Any, name: str, path: str) -> str:
    """Replace the atoms by those of an assembly; say which one it is."""
    import gemmi

    if name == "asu":
        return "asu"
    names = [assembly.name for assembly in structure.assemblies]
    if not names:
        return "asu (the file names no assembly)"
    if name not in names:
        raise InputError(f"{path}: no assembly {name!r}; there are {', '.join(names)}, and asu")
    try:
        structure.transform_to_assembly(name, gemmi.HowToNameCopiedChain.AddNumber)
    except RuntimeError as error:
        raise InputError(
            f"{path}: assembly {name} cannot be built ({error}); --assembly asu takes it as it is"
        ) from error
    return name


def _account_for_hydrogens(model: Any, path: str, *, refuse: bool) -> tuple[float, tuple[str, ...]]:
    """Raise occupancies by the scattering of absent hydrogens; return the mass in Da and the ligands left as they are.

    Below the resolution of a residue (5 Å) it does not matter where in it the hydrogens are.
    """
    import gemmi

    mass = 0.0
    unknown: dict[str, Any] = {}
    for chain in model:
        for residue in chain:
            bad = next((atom for atom in residue if atom.element.atomic_number == 0), None)
            if bad is not None:
                raise InputError(f"{path}: atom {bad.name} of residue {residue} in chain {chain.name} has no element")
            known = gemmi.find_tabulated_residue(residue.name)
            for atom in residue:
                atom.occ = 1.0  # of a particle in ice nothing is half there
            mass += sum(atom.element.weight for atom in residue)
            if not known.found():
                unknown.setdefault(residue.name, residue.entity_type)
                continue
            if any(atom.is_hydrogen() for atom in residue) or len(residue) == 1:
                continue
            heavy = sum(atom.element.c4322.calculate_sf(0.0) for atom in residue)
            # Two hydrogens go with the water that a peptide or phosphate bond sets free.
            count = max(known.hydrogen_count - (2 if residue.entity_type == gemmi.EntityType.Polymer else 0), 0)
            factor = 1 + count * HYDROGEN_LENGTH / heavy if heavy > 0 else 1.0
            mass += count * gemmi.Element("H").weight
            for atom in residue:
                atom.occ *= factor
    in_polymer = [name for name, kind in unknown.items() if kind == gemmi.EntityType.Polymer]
    if in_polymer and refuse:
        raise InputError(
            f"{path}: unknown residues {', '.join(sorted(in_polymer))}; correct their names, or give "
            "--unknown_residues as_written to take their atoms without hydrogens"
        )
    return mass, tuple(sorted(unknown))


def potential(model: AtomicModel, *, spacing: float, size: int, solvent: bool = True) -> Array:
    """Electrostatic potential of a model above that of the ice that it displaces.

    Electron form factors of gemmi (``DensityCalculatorE``: International Tables C, table 4.3.2.2); all atoms get the
    same temperature factor, which is then taken away again in Fourier space, so that the B factors of the file, which
    are seldom those of a particle in ice, do not matter. Solvent: inside the molecular surface (gemmi's
    ``SolventMasker``), `ICE_VOLT` is subtracted; outside, the contrast is zero.

    Parameters
    ----------
    model : AtomicModel
        Atoms about the origin.
    spacing : float
        Å per voxel.
    size : int
        Even edge of the cube in voxels; the origin is voxel ``size // 2``.
    solvent : bool
        Subtract the displaced ice; without, the potential in vacuum.

    Returns
    -------
    array
        `(size, size, size)` in V, ``(z, y, x)``, band-limited to the Nyquist frequency of ``spacing``.
    """
    import gemmi

    factor = max(1, int(np.ceil(spacing / FINEST_SPACING)))
    fine, count = spacing / factor, size * factor
    edge = size * spacing
    atoms = model.model.clone()
    middle = gemmi.Position(edge / 2, edge / 2, edge / 2)
    # A Gaussian of 0.8 grid steps is sampled without loss.
    temperature = 8 * np.pi**2 * (0.8 * fine) ** 2
    for chain in atoms:
        for residue in chain:
            for atom in residue:
                atom.pos += middle
                atom.b_iso = temperature
                atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    calculator = gemmi.DensityCalculatorE()
    calculator.grid.unit_cell = gemmi.UnitCell(edge, edge, edge, 90, 90, 90)
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.grid.set_size(count, count, count)
    calculator.d_min = 2 * fine
    calculator.add_model_density_to_grid(atoms)
    # gemmi's arrays are (x, y, z).
    volts = np.asarray(calculator.grid.array).transpose(2, 1, 0) * VOLT_PER_DENSITY
    spectrum = _cropped_spectrum(volts, size)
    frequency = np.fft.fftfreq(size, spacing)
    squared = (
        frequency[:, None, None] ** 2
        + frequency[None, :, None] ** 2
        + np.fft.rfftfreq(size, spacing)[None, None, :] ** 2
    )
    spectrum *= np.exp(np.minimum(temperature * squared / 4, 30.0))
    if solvent:
        grid = calculator.grid
        masker = gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx)
        masker.rprobe = masker.rshrink = SURFACE_PROBE
        masker.put_mask_on_float_grid(grid, atoms)
        # The mask is 1 in the solvent.
        inside = 1 - np.asarray(grid.array).transpose(2, 1, 0)
        spectrum -= _cropped_spectrum(inside, size) * ICE_VOLT
    cropped: Array = np.fft.irfftn(spectrum, s=(size,) * 3, axes=(0, 1, 2)).astype(np.float32)
    return cropped


def _cropped_spectrum(volume: npt.NDArray[Any], size: int) -> npt.NDArray[np.complex128]:
    """Fourier transform of a cube, cut to the frequencies of a coarser grid of `size` voxels, in its units."""
    import scipy.fft

    count = volume.shape[0]
    spectrum = scipy.fft.rfftn(volume.astype(np.float32), workers=-1)
    keep = np.r_[0 : size // 2, count - size // 2 : count]
    # The Nyquist planes are left out: they have no partner.
    cropped = spectrum[np.ix_(keep, keep, np.arange(size // 2 + 1))].astype(np.complex128)
    if size < count:
        cropped[size // 2], cropped[:, size // 2], cropped[:, :, size // 2] = 0, 0, 0
    return np.asarray(cropped * (size / count) ** 3)


def is_model_file(name: str) -> bool:
    """Whether a file name is one of an atomic model."""
    return name.lower().endswith(MODEL_SUFFIXES)


def model_name(path: str | os.PathLike[str]) -> str:
    """File name without the suffixes of atomic models."""
    name = Path(path).name
    for suffix in sorted(MODEL_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
