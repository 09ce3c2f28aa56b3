"""The only folder that knows ComfyUI's insides: what a new ComfyUI can break is in here."""
