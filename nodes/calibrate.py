"""REGCalibrate and REGLoadCalibration: the correction measured once per model, kept as a small table."""

import itertools
import math

from comfy_api.latest import io

from ..reg_core.calibration import Calibration, Measurement
from ..reg_core.checks import cut
from ..reg_core.drawing import plot_calibration
from ..reg_core.drawing.canvas import to_tensor
from ..reg_core.files import check_place
from ..reg_core.forms import PRODUCT_FORMS
from ..reg_core.settings import Settings
from . import schema as sockets
from .checked import checked
from .hooks.rectified import log, rectified_model
from .host.noise_levels import has_noise, model_kind
from .host.page import shown
from .host.runs import SAMPLERS, SCHEDULERS, latent_std, sample_once, step_counter
from .host.tables import calibration_file, calibration_files, new_calibration_file
from .schema import GUIDANCE, advanced, choice, described, number, whole

MORE_PROMPTS = ("positive_2", "positive_3", "positive_4")
SEEDS = 2**64


class REGCalibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGCalibrate",
            category=GUIDANCE,
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image"),
                choice("form", PRODUCT_FORMS),
                number("cfg", 7.0, 1.01, 100.0, 0.1),
                whole("steps", 20, 2, 1000),
                whole("runs", 2, 1, 64),
                whole("seed", 0, 0, SEEDS - 1),
                io.String.Input("filename_prefix", default="reg_calibration/table"),
                *advanced(choice("sampler_name", SAMPLERS, "euler")),
                *advanced(choice("scheduler", SCHEDULERS, "karras")),
                *(io.Conditioning.Input(name, optional=True) for name in MORE_PROMPTS),
            ],
            outputs=[sockets.Calibration.Output(), io.String.Output(), io.Float.Output()],
            is_output_node=True,
        )
        return described(schema, "REG", "calibration", "measure guidance", "free REG")

    @classmethod
    @checked
    def execute(cls, model, positive, negative, latent_image, filename_prefix, **values) -> io.NodeOutput:
        """`values`: form, runs, seed; those of sample_once; and further prompts."""
        form, runs, seed = (values.pop(name) for name in ("form", "runs", "seed"))
        further = [values.pop(name, None) for name in MORE_PROMPTS]
        prompts = [positive, *(prompt for prompt in further if prompt is not None)]
        keep = bool(filename_prefix.strip())
        if keep:  # what would fail at the end fails before the first model call
            check_place(new_calibration_file(filename_prefix))
        if not has_noise(model):
            raise ValueError("REGCalibrate: the model starts from an image without noise; there is no REG")
        measurement = Measurement()
        patched, trace = rectified_model(model, Settings(form=form), observe=measurement)
        callback = step_counter(values["steps"] * runs * len(prompts))
        prediction, latent = model_kind(model)
        notes = {"runs": runs * len(prompts), **values}
        about = {"prediction": prediction, "latent": latent, "model": type(model.model).__name__}

        def measured():
            try:
                return measurement.table(form, **about, notes=notes)
            except ValueError as error:
                notes_of_run = trace.last.notes if trace.last else []
                raise ValueError("; ".join([f"REGCalibrate: {error}", *notes_of_run])) from None

        variances = []
        for prompt, run in itertools.product(prompts, range(runs)):
            seed_of_run = (seed + run) % SEEDS
            samples = sample_once(patched, prompt, negative, latent_image, seed_of_run, callback, **values)
            variances.append(latent_std(model, samples) ** 2)
            if len(variances) == 1:
                measured()  # a model without a correction is known by now
        table = measured()
        data_std = math.sqrt(sum(variances) / len(variances))
        text = f"{table.summary()}. data_std of what was sampled: {data_std:.3g}"
        text += _saved(table, filename_prefix) if keep else ""
        log.info("REG: %s", text)
        plot = to_tensor(plot_calibration(table, data_std, lines=[text]))
        return io.NodeOutput(table, text, data_std, ui=shown(cls, plot, text))


def _saved(table, prefix) -> str:
    """Where the table is now. A full disk does not take the measurement away."""
    try:
        return f". Saved: {table.save(new_calibration_file(prefix))}"
    except Exception as error:  # writers of files raise nearly anything
        log.warning("REG: the table could not be saved: %s", cut(error))
        return f". Not saved: {cut(error)}"


class REGLoadCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGLoadCalibration",
            category=GUIDANCE,
            inputs=[io.Combo.Input("table", options=calibration_files())],
            outputs=[sockets.Calibration.Output()],
        )
        return described(schema, "REG", "calibration")

    @classmethod
    def fingerprint_inputs(cls, table):
        path = calibration_file(table)
        return f"{path} {path.stat().st_mtime_ns}"

    @classmethod
    def execute(cls, table) -> io.NodeOutput:
        return io.NodeOutput(Calibration.load(calibration_file(table)))
