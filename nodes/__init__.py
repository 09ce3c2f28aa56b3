"""The doors: a node class each, by feature. Schemas and small conversions only."""

from comfy_api.latest import ComfyExtension, io

from . import autoguidance, calibrate, demo, guidance, plots, reward, schedules, sweep

MODULES = (guidance, calibrate, schedules, autoguidance, reward, plots, sweep, demo)
NODES = [
    node
    for module in MODULES
    for node in vars(module).values()
    if isinstance(node, type) and issubclass(node, io.ComfyNode) and node.__module__ == module.__name__
]


class RegExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
