"""ComfyUI's door to the pack."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI's loader."""
    from .nodes import RegExtension

    return RegExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
