"""Student: one network with a sharp map, taught by the maps of other models, and with a class, taught by labels."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.errors import InputError
from histoloc.losses import classification
from histoloc.maps import place
from histoloc.methods.base import NotNegative, Positive, Setting, Supervision
from histoloc.methods.prior import Prior, PriorOptions
from histoloc.types import Batch, Output


@dataclass(frozen=True)
class StudentOptions(PriorOptions):
    """Options of a student.

    Attributes:
        map_weight: weight of the cross-entropy with the teachers' map.
        class_weight: weight of the cross-entropy of the image's class.
        sharpness: factor on the logit of the teachers' mean map. A mean of maps that disagree is flatter than each of
            them: 1.5 makes it about as steep again. 1 leaves it.
    """

    map_weight: NotNegative = 1.0
    class_weight: NotNegative = 1.0
    sharpness: Positive = 1.5


class Student(Prior):
    """A backbone with a decoder that learns the mean map of other models, its teachers, and the class from labels.

    With q the teachers' mean probability at a pixel, p the student's, and p̂ the class probabilities by the mean of the
    deepest features, the loss is

        min a mean(-q' log p - (1 - q') log(1 - p)) + b H(y, p̂),  q' = sigmoid(s log(q / (1 - q)))

    Training on the averaged predictions of several networks follows Hinton et al. (2015).
    """

    title: ClassVar[str] = "Student"
    paper: ClassVar[str] = "histoloc; after Hinton et al., Distilling the knowledge in a neural network, 2015"
    options: StudentOptions  # pyright: ignore[reportIncompatibleVariableOverride]
    supervision: ClassVar[frozenset[Supervision]] = frozenset({"image"})
    classifies: ClassVar[bool] = True
    taught: ClassVar[bool] = True

    def __init__(self, setting: Setting, options: StudentOptions) -> None:
        super().__init__(setting, options)
        self.head = nn.Linear(self.backbone.channels, len(setting.classes))

    def forward(self, image: Tensor) -> Output:
        """Class scores from the mean of the deepest features; the ROI's score, at the decoder's stride."""
        pyramid = self.backbone.pyramid(image)
        return Output(self.head(pyramid[-1].mean(dim=(2, 3))).float(), self.decoder(pyramid), {})

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of the class, and of the map with the teachers'."""
        if batch.target is None:
            raise InputError("a student's map learns from other models: give --teachers")
        o, size = self.options, batch.target.shape[-2:]
        scores = place(output.evidence, self.stride, size)
        losses = {"classification": o.class_weight * classification(output.logits, batch)}
        losses["map"] = o.map_weight * F.binary_cross_entropy_with_logits(scores, sharpen(batch.target, o.sharpness))
        return losses


def sharpen(probability: Tensor, factor: float) -> Tensor:
    """The probability whose logit is `factor` times as large; 0, .5 and 1 stay."""
    inside, outside = probability**factor, (1 - probability) ** factor
    return inside / (inside + outside)
