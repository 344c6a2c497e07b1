"""Atomic models made here: a small protein whose assembly is a dimer."""

from pathlib import Path

ASSEMBLY = """REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000       60.00000
REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000       60.00000
REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000        0.00000
"""
# Alanine, without hydrogens, about its centre (Å).
ATOMS = (
    ("N", -1.2, 0.4, 0.3),
    ("CA", 0.0, 0.8, -0.2),
    ("C", 1.1, -0.1, 0.2),
    ("O", 1.3, -1.2, -0.3),
    ("CB", -0.2, 0.9, -1.7),
)


def protein_text(*, residue: str = "ALA", count: int = 216, water: bool = True, assembly: bool = True) -> str:
    """A PDB file of `count` residues on a lattice of 5.2 Å, roughly as dense as protein."""
    lines = []
    serial = 1
    for index in range(count):
        centre = [5.2 * (index // 36), 5.2 * (index // 6 % 6), 5.2 * (index % 6)]
        for name, *offset in ATOMS:
            x, y, z = (c + o for c, o in zip(centre, offset, strict=True))
            place = f"{x:8.3f}{y:8.3f}{z:8.3f}"
            atom = f"ATOM  {serial:5d}  {name:<3} {residue} A{index + 1:4d}    {place}  1.00 30.00"
            lines.append(f"{atom}          {name[0]:>2}")
            serial += 1
    lines.append("TER")
    if water:
        lines.append(f"HETATM{serial:5d}  O   HOH A 900    {99.0:8.3f}{0.0:8.3f}{0.0:8.3f}  1.00 30.00           O")
    return (ASSEMBLY if assembly else "") + "\n".join(lines) + "\nEND\n"


def write_protein(folder: Path, name: str = "1abc.pdb", **options: object) -> Path:
    """Write `protein_text` to a file."""
    file = folder / name
    file.write_text(protein_text(**options))  # type: ignore[arg-type]
    return file
