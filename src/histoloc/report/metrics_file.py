"""What metrics.json holds, checked."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Percent = Annotated[FiniteFloat, Field(ge=0, le=100.0001)]  # bounds may round up
Signed = Annotated[FiniteFloat, Field(ge=-100.0001, le=100.0001)]


class Metric(BaseModel):
    """One metric over a split, in percent with its 95 % interval; None where it is not defined."""

    value: Percent | None = None
    low: Percent | None = None
    high: Percent | None = None
    n: int | None = None


class SignedMetric(Metric):
    """A metric that may be negative, times 100."""

    value: Signed | None = None
    low: Signed | None = None
    high: Signed | None = None


class ThresholdCurve(BaseModel):
    """F1⁺ and F1⁻ (percent) over the thresholds in [0, 1] at which the ROI map may be cut."""

    threshold: list[FiniteFloat]
    f1_plus: list[Percent | None]
    f1_minus: list[Percent | None]


class Metrics(BaseModel):
    """The `metrics` part of metrics.json; keys that start with `oracle_` are kept as extras."""

    model_config = ConfigDict(extra="allow")

    resampled: Literal["images", "groups"] = "images"  # by the intervals
    groups: int | None = None
    notes: list[str] = Field(default_factory=list)
    cl_error: Metric | None = None
    balanced_accuracy: Metric | None = None
    auc: Metric | None = None
    kappa: SignedMetric | None = None
    f1_plus: Metric | None = None
    f1_minus: Metric | None = None
    f1_mean: Metric | None = None
    pxap: Metric | None = None
    pxap_with_roi: Metric | None = None
    pxap_images_without_roi: int = 0  # in the pool of `pxap`
    tpr: Metric | None = None
    tnr: Metric | None = None
    specificity_without_roi: Metric | None = None
    confusion: list[list[int]] | None = None  # (K, K) images; row: true class, column: predicted class
    classes: list[str] = Field(default_factory=list)
    threshold_curve: ThresholdCurve | None = None

    @property
    def pools_without_roi(self) -> bool:
        """Whether images without ROI take part in `pxap`, so that it differs from `pxap_with_roi`."""
        return self.pxap_images_without_roi > 0 and self.value("pxap") is not None

    def value(self, name: str) -> float | None:
        """A metric by its name; None where it is not defined."""
        metric = getattr(self, name, None)
        return metric.value if isinstance(metric, Metric) else None

    @property
    def oracles(self) -> dict[str, Any]:
        """What was chosen on the evaluated split itself, by name."""
        return {key: value for key, value in (self.model_extra or {}).items() if key.startswith("oracle")}


class Threshold(BaseModel):
    """How the ROI map was cut; `value` is None where every image has its own."""

    rule: str = "unknown"
    value: FiniteFloat | None = None


class Identity(BaseModel):
    """What an evaluation was asked for, on which content of which table; its weights are the run's own."""

    table: str = ""
    content: str | None = None  # fingerprint of the samples; None before histoloc 0.2
    split: str | None = None
    fold: int | None = None
    threshold: FiniteFloat | None = None
    range: str | None = None
    map_class: str | None = None
    empty_class: str | None = None
    weights_sha256: str | None = None


class MetricsFile(BaseModel):
    """metrics.json as the evaluation writes it."""

    method: str | None = None
    run: str | None = None
    table: str | None = None
    split: str | None = None
    fold: int | None = None
    n_images: int
    threshold: Threshold = Field(default_factory=Threshold)
    selection: dict[str, Any] | None = None
    uses_masks: list[str] = Field(default_factory=list)
    empty_class: str | None = None  # its images count as images without ROI, with or without a mask file
    metrics: Metrics
    argmax_rule: dict[str, Any] | None = None  # estimates where a pixel is ROI if the predicted class's map is largest
    per_image_rule: dict[str, Metric] | None = None  # estimates where maps are made by the papers' per-image rule
    floors: dict[str, dict[str, Percent | None]] = Field(default_factory=dict)  # of methods that learn nothing
    range: str | None = None  # how evidence became maps; several are joined by ` and `
    scale: dict[str, int] = Field(default_factory=dict)  # how many images were brought to the network how
    map_class: str | None = None  # whose maps were measured, where not those of the predicted class
    notes: list[str] = Field(default_factory=list)
    identity: Identity | None = None
    seconds: float | None = None

    @property
    def asked(self) -> Identity:
        """What the evaluation was asked for; of an old one, which did not write it down, as far as it shows."""
        if self.identity is not None:
            return self.identity
        given = self.threshold.value if self.threshold.rule == "given" else None
        return Identity(table=self.table or "", split=self.split, fold=self.fold, threshold=given)
