"""What nodes show on the page after they have run."""

import sys


def show_on_node(node_id: str | None, text: str) -> None:
    """A line of text on a node, by ComfyUI's own preview; nothing where no page is served."""
    served = getattr(sys.modules.get("server"), "PromptServer", None)
    page = getattr(served, "instance", None)
    if page is not None and node_id is not None:
        page.send_progress_text(text, node_id)
