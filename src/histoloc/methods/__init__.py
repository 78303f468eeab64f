"""The methods: one row each. Adding one means its file, its row here, and a recipe."""

from histoloc.methods.allones import AllOnes
from histoloc.methods.base import Method, Setting
from histoloc.methods.cam import Gap, Lse, MaxPool, Wildcat
from histoloc.methods.deepmil import DeepMil
from histoloc.methods.erase import Erase
from histoloc.methods.gradcam import GradCam, GradCamPP, LayerCam, SmoothGradCamPP, XGradCam
from histoloc.methods.maxmin import MaxMin
from histoloc.methods.pn import Pn
from histoloc.methods.stain import Stain
from histoloc.methods.unet import UNet

METHODS: dict[str, type[Method]] = {
    "allones": AllOnes,
    "stain": Stain,
    "gap": Gap,
    "maxpool": MaxPool,
    "lse": Lse,
    "wildcat": Wildcat,
    "gradcam": GradCam,
    "gradcampp": GradCamPP,
    "smoothgradcampp": SmoothGradCamPP,
    "xgradcam": XGradCam,
    "layercam": LayerCam,
    "deepmil": DeepMil,
    "erase": Erase,
    "pn": Pn,
    "maxmin": MaxMin,
    "unet": UNet,
}

__all__ = ["METHODS", "Method", "Setting"]
