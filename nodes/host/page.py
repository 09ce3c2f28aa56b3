"""What nodes show on the page after they have run."""

import sys

from comfy_api.latest import ui


def show_on_node(node_id: str | None, text: str) -> None:
    """A line of text on a node, by ComfyUI's own preview; nothing where no page is served."""
    served = getattr(sys.modules.get("server"), "PromptServer", None)
    page = getattr(served, "instance", None)
    if page is not None and node_id is not None:
        page.send_progress_text(text, node_id)


def shown(cls, picture, text: str) -> dict:
    """What the page shows under an output node: a picture [1, H, W, 3]. The text is for who asks for it."""
    return {**ui.PreviewImage(picture, cls=cls).as_dict(), "text": (text,)}
