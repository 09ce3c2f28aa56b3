"""ComfyUI's door to the pack."""


async def comfy_entrypoint():
    """Called by ComfyUI's loader."""
    from .nodes import RegExtension

    return RegExtension()


__all__ = ["comfy_entrypoint"]
