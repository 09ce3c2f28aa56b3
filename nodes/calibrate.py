"""REGCalibrate and REGLoadCalibration: the correction measured once per model, kept as a small table."""

from comfy_api.latest import io

from ..reg_core.calibration import Calibration, Measurement
from ..reg_core.drawing import plot_calibration
from ..reg_core.drawing.canvas import to_tensor
from ..reg_core.forms import PRODUCT_FORMS
from ..reg_core.settings import Settings
from . import schema as sockets
from .hooks.rectified import log, rectified_model
from .host.noise_levels import model_kind
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
    def execute(cls, model, positive, negative, latent_image, filename_prefix, **values) -> io.NodeOutput:
        """`values`: form, runs, seed; those of sample_once; and further prompts."""
        form, runs, seed = (values.pop(name) for name in ("form", "runs", "seed"))
        further = [values.pop(name, None) for name in MORE_PROMPTS]
        prompts = [positive, *(prompt for prompt in further if prompt is not None)]
        measurement = Measurement()
        patched, trace = rectified_model(model, Settings(form=form), observe=measurement)
        callback = step_counter(values["steps"] * runs * len(prompts))
        sampled = []
        for prompt in prompts:
            for run in range(runs):
                seed_of_run = (seed + run) % SEEDS
                sampled.append(
                    sample_once(patched, prompt, negative, latent_image, seed_of_run, callback, **values)
                )
        data_std = latent_std(model, sampled)
        prediction, latent = model_kind(model)
        notes = {"runs": runs * len(prompts), **values}
        about = {"prediction": prediction, "latent": latent, "model": type(model.model).__name__}
        try:
            table = measurement.table(form, **about, notes=notes)
        except ValueError as error:
            raise ValueError("; ".join([f"REGCalibrate: {error}", *trace.last.notes])) from None
        text = f"{table.summary()}. data_std of what was sampled: {data_std:.3g}"
        if filename_prefix.strip():
            text += f". Saved: {table.save(new_calibration_file(filename_prefix))}"
        log.info("REG: %s", text)
        plot = to_tensor(plot_calibration(table, data_std, lines=[text]))
        return io.NodeOutput(table, text, data_std, ui=shown(cls, plot, text))


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
