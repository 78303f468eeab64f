"""ASAP XML of the factory's regions, as Camelyon16 has it."""

from collections.abc import Sequence
from pathlib import Path

from factory import Region

GROUPS = {"metastasis": "Tumor", "hole": "_2"}


def write_asap(path: Path, regions: Sequence[Region]) -> Path:
    """Write metastases and holes as annotations; other regions are what no pathologist outlines."""
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations><Annotations>"]
    for number, region in enumerate(r for r in regions if r.kind in GROUPS):
        lines.append(f'<Annotation Name="{number}" Type="Polygon" PartOfGroup="{GROUPS[region.kind]}"><Coordinates>')
        lines += [f'<Coordinate Order="{k}" X="{x}" Y="{y}" />' for k, (x, y) in enumerate(region.vertices)]
        lines.append("</Coordinates></Annotation>")
    lines.append("</Annotations></ASAP_Annotations>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path
