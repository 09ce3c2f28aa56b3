"""The node classes, by file; schemas and hooks only."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .demo import REGDemoDecode, REGDemoLatent, REGDemoModel, REGDemoPrompt
from .guidance import REGGuidance
from .schedules import REGScheduleCosine, REGScheduleCurve, REGScheduleInterval, REGScheduleLinear

NODES = [
    REGGuidance,
    REGScheduleLinear,
    REGScheduleCosine,
    REGScheduleInterval,
    REGScheduleCurve,
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
