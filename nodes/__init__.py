"""The node classes, by file; schemas and hooks only."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .autoguidance import REGAutoguidance, REGReferenceModel, REGWeakModel
from .calibrate import REGCalibrate, REGLoadCalibration
from .demo import REGDemoDecode, REGDemoLatent, REGDemoModel, REGDemoPrompt
from .guidance import REGGuidance
from .plots import REGSchedulePlot, REGTracePlot
from .reward import REGRewardDigit, REGRewardGuidance, REGRewardImage, REGRewardLatent
from .schedules import REGScheduleCosine, REGScheduleCurve, REGScheduleInterval, REGScheduleLinear
from .sweep import REGGrid, REGSweep

NODES = [
    REGGuidance,
    REGCalibrate,
    REGLoadCalibration,
    REGScheduleLinear,
    REGScheduleCosine,
    REGScheduleInterval,
    REGScheduleCurve,
    REGAutoguidance,
    REGReferenceModel,
    REGWeakModel,
    REGRewardGuidance,
    REGRewardDigit,
    REGRewardLatent,
    REGRewardImage,
    REGTracePlot,
    REGSchedulePlot,
    REGSweep,
    REGGrid,
    REGDemoModel,
    REGDemoPrompt,
    REGDemoLatent,
    REGDemoDecode,
]


class RegExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
