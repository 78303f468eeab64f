"""Draw docs/walk-NAME.svg: the rooms that a training image, a predicted image and a slide pass, one after the other."""

from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
# A room (module of histoloc, or a file) and what leaves it; a blank room starts another line.
WALKS: dict[str, list[tuple[str, str]]] = {
    "training": [
        ("data.table", "samples"),
        ("data.trainset", "pixels, label, augmented"),
        ("types", "Batch"),
        ("methods", "Output, loss terms"),
        ("training", "weights"),
        ("calibration", "range of evidence"),
        ("model_folder", "config.json, model.safetensors"),
    ],
    "image": [
        ("cli", "image file"),
        ("data.images", "pixels"),
        ("scale", "pixels at the model's µm/px"),
        ("methods", "class scores, evidence"),
        ("maps", "ROI map"),
        ("prediction", "Localization"),
        ("pictures", "mask, heatmap, overlay"),
    ],
    "slide": [
        ("cli", "slide files"),
        ("runner", "one slide as an item"),
        ("slides.reader", "regions"),
        ("slides.grid", "tiles with tissue"),
        ("prediction", "evidence of tiles"),
        ("slides.stitch", "one array on disk"),
        ("slides.regions", "outlines"),
        ("slides.export", "pyramid, overview"),
    ],
}
WIDTH, BOX, GAP, HIGH = 168, 132, 36, 44


def main() -> None:
    """Write the pictures."""
    for name, steps in WALKS.items():
        path = DOCS / f"walk-{name}.svg"
        path.write_text(drawn(steps), encoding="utf-8")
        print(path)


def drawn(steps: list[tuple[str, str]]) -> str:
    """A row of boxes, rooms inside, with what leaves each room below its arrow."""
    width = WIDTH * len(steps)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 110" font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#444"/></marker></defs>',
    ]
    for number, (room, result) in enumerate(steps):
        x = number * WIDTH + 4
        parts.append(
            f'<rect x="{x}" y="8" width="{BOX}" height="{HIGH}" rx="6" fill="#eef3f8" stroke="#35618e"/>'
            f'<text x="{x + BOX / 2}" y="35" text-anchor="middle" font-weight="bold">{escape(room)}</text>'
            f'<text x="{x + BOX / 2}" y="72" text-anchor="middle" fill="#444">{_lines(result, x + BOX / 2)}</text>'
        )
        if number + 1 < len(steps):
            start, end = x + BOX, x + BOX + GAP
            parts.append(f'<line x1="{start}" y1="30" x2="{end}" y2="30" stroke="#444" marker-end="url(#tip)"/>')
    return "\n".join([*parts, "</svg>\n"])


def _lines(text: str, x: float) -> str:
    words = text.split(", ")
    lines = [word + ("," if number + 1 < len(words) else "") for number, word in enumerate(words)]
    return "".join(f'<tspan x="{x}" dy="{16 if n else 0}">{escape(line)}</tspan>' for n, line in enumerate(lines))


if __name__ == "__main__":
    main()
