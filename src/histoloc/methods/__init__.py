"""The table of methods. Adding one means its file in this folder and its line here."""

from pkgutil import resolve_name

from histoloc.methods.base import Method, Setting

METHODS: dict[str, type[Method]] = {
    name: resolve_name(f"histoloc.methods.{place}")
    for name, place in {
        "allones": "allones:AllOnes",
        "stain": "stain:Stain",
        "gap": "cam:Gap",
        "has": "has:HideAndSeek",
        "maxpool": "cam:MaxPool",
        "lse": "cam:Lse",
        "wildcat": "cam:Wildcat",
        "gradcam": "gradcam:GradCam",
        "gradcampp": "gradcam:GradCamPP",
        "smoothgradcampp": "gradcam:SmoothGradCamPP",
        "xgradcam": "gradcam:XGradCam",
        "layercam": "gradcam:LayerCam",
        "deepmil": "deepmil:DeepMil",
        "erase": "erase:Erase",
        "pn": "pn:Pn",
        "maxmin": "maxmin:MaxMin",
        "unet": "unet:UNet",
        "prior": "prior:Prior",
        "student": "student:Student",
        "crossfit": "crossfit:CrossFit",
    }.items()
}

__all__ = ["METHODS", "Method", "Setting"]
