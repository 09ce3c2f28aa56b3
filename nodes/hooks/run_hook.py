"""A hook on a MODEL whose state belongs to one sampling run.

ComfyUI calls (its names) OUTER_SAMPLE once a run, and PREDICT_NOISE for every model call.
"""

from ..host.options import WrappersMP, sample_arguments


class RunHook:
    """Holds settings only. The state that `begin` makes lives in the guider's private model_options."""

    key = ""  # of the wrappers on a MODEL

    def onto(self, model):
        """A clone of MODEL with this hook."""
        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, self.key, self.outer_sample)
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, self.key, self.predict_noise)
        return patched

    @classmethod
    def without(cls, model):
        """A clone of MODEL without hooks of this kind."""
        patched = model.clone()
        for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE):
            patched.remove_wrappers_with_key(kind, cls.key)
        return patched

    @property
    def place(self) -> str:
        return f"{self.key}_{id(self)}"

    def begin(self, guider, sigmas):
        """The state of a run over `sigmas` (None: not known)."""
        raise NotImplementedError

    def announce(self, state, guider) -> None:
        """Before a run."""

    def end(self, state, guider) -> None:
        """After a run that succeeded."""

    def call(self, state, guider, executor, x, timestep, model_options, seed):
        """One model call: the result of executor(x, timestep, model_options, seed)."""
        raise NotImplementedError

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        state = self.begin(guider, sample_arguments(args, kwargs)["sigmas"])
        self.announce(state, guider)
        guider.model_options[self.place] = state
        try:
            result = executor(*args, **kwargs)
        finally:
            guider.model_options.pop(self.place, None)
        self.end(state, guider)
        return result

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        guider, options = executor.class_obj, model_options or {}
        state = options.get(self.place)
        if state is None:  # a guider that is driven without sample() has no run
            state = self.begin(guider, options.get("transformer_options", {}).get("sample_sigmas"))
        return self.call(state, guider, executor, x, timestep, options, seed)
