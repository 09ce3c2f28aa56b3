"""The node classes, by file; schemas and hooks only."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .autoguidance import REGAutoguidance, REGReferenceModel, REGWeakModel
from .demo import REGDemoDecode, REGDemoLatent, REGDemoModel, REGDemoPrompt
from .guidance import REGGuidance
from .reward import REGRewardDigit, REGRewardGuidance, REGRewardImage, REGRewardLatent
from .schedules import REGScheduleCosine, REGScheduleCurve, REGScheduleInterval, REGScheduleLinear

NODES = [
    REGGuidance,
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
