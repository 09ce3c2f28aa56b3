"""ComfyUI's door to the pack."""

WEB_DIRECTORY = "./web"  # docs/<node_id>.md, the pages behind a node's help button; js/reg.js, which hides widgets that do nothing


async def comfy_entrypoint():
    """Called by ComfyUI's loader."""
    from .nodes import RegExtension

    return RegExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
