"""REGCalibrate and REGLoadCalibration: the correction measured once per model, kept as a small .safetensors table."""

from comfy_api.latest import io

from ..reg_core.calibration import FORMS, Calibration, Measurement
from ..reg_core.rectify import ENGINES, Settings
from .hook import rectified_model
from .host import log
from .host_runs import calibration_file, calibration_files, model_kind, new_calibration_file, sample_once, sampler_names, scheduler_names, step_counter
from .schema import Calibration as CalibrationSocket
from .schema import advanced, with_aliases

CATEGORY = "advanced/guidance"
POSITIVES = ("positive", "positive_2", "positive_3", "positive_4")


class REGCalibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGCalibrate",
            display_name="REG Calibrate",
            category=CATEGORY,
            description="Measures what REG multiplies guidance by, noise level by noise level, over a few prompts and seeds, and saves the table. "
            "REG Guidance with form 'calibrated' then costs nothing beyond plain guidance.",
            inputs=[
                io.Model.Input("model", tooltip="The model to measure, as you sample it (LoRAs, shift) but without REG Guidance."),
                io.Conditioning.Input("positive", tooltip="A typical prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt you use."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the size you use; batch 1 to 4 images."),
                io.Combo.Input(
                    "form",
                    options=list(FORMS),
                    default="row_sum",
                    tooltip="Which correction to measure. The table keeps the multiple of guidance nearest to it.",
                ),
                io.Boolean.Input("per_channel", default=False, tooltip="One value for every latent channel instead of one for all."),
                io.Float.Input("cfg", default=7.0, min=1.01, max=100.0, step=0.1, tooltip="Guidance scale of the measuring runs: the one you use."),
                io.Int.Input("steps", default=20, min=2, max=1000, tooltip="Steps of each measuring run; the table gets a noise level per step."),
                io.Int.Input("runs", default=2, min=1, max=64, tooltip="Seeds per prompt. Each run costs one sampling with three model rows a step."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, tooltip="Of the first run; the others follow on."),
                io.String.Input(
                    "filename_prefix",
                    default="reg_calibration/table",
                    tooltip="File in the output folder, numbered. Inside reg_calibration/ REG Load Calibration finds it. Empty: do not save.",
                ),
                advanced(io.Combo.Input("sampler_name", options=sampler_names(), default="euler", tooltip="Sampler of the measuring runs.")),
                advanced(io.Combo.Input("scheduler", options=scheduler_names(), default="karras", tooltip="Noise levels of the measuring runs.")),
                advanced(io.Combo.Input("engine", options=list(ENGINES), default="auto", tooltip="How Jacobian products are computed while measuring.")),
                *(io.Conditioning.Input(name, optional=True, tooltip="Another typical prompt.") for name in POSITIVES[1:]),
            ],
            outputs=[
                CalibrationSocket.Output(display_name="calibration", tooltip="For REG Guidance with form 'calibrated'."),
                io.String.Output(display_name="text", tooltip="What was measured, in a line, and where it was saved."),
            ],
            is_output_node=True,
        )
        return with_aliases(schema, "REG", "calibration", "measure guidance", "free REG")

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, form, per_channel, cfg, steps, runs, seed, filename_prefix, sampler_name, scheduler, engine, **more
    ) -> io.NodeOutput:
        prompts = [positive, *(more[name] for name in POSITIVES[1:] if more.get(name) is not None)]
        measurement = Measurement(per_channel)
        patched, _ = rectified_model(model, Settings(form=form, engine=engine), observe=measurement)
        callback = step_counter(steps * runs * len(prompts))
        for prompt in prompts:
            for run in range(runs):
                sample_once(patched, prompt, negative, latent_image, steps, cfg, sampler_name, scheduler, seed + run, callback)
        prediction, latent, _, name = model_kind(model)
        notes = {"cfg": cfg, "steps": steps, "runs": runs * len(prompts), "scheduler": scheduler, "engine": engine}
        table = measurement.table(form, prediction=prediction, latent=latent, model=name, notes=notes)
        text = table.summary()
        if filename_prefix.strip():
            text += f". Saved: {table.save(new_calibration_file(filename_prefix))}"
        log.info("REG: %s", text)
        return io.NodeOutput(table, text, ui={"text": (text,)})


class REGLoadCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGLoadCalibration",
            display_name="REG Load Calibration",
            category=CATEGORY,
            description="Loads a table that REG Calibrate saved, or that came with a model.",
            inputs=[
                io.Combo.Input("table", options=calibration_files(), tooltip="A .safetensors table from models/reg_calibration or output/reg_calibration.")
            ],
            outputs=[CalibrationSocket.Output(display_name="calibration", tooltip="For REG Guidance with form 'calibrated'.")],
        )
        return with_aliases(schema, "REG", "calibration")

    @classmethod
    def fingerprint_inputs(cls, table):
        path = calibration_file(table)
        return f"{path} {path.stat().st_mtime_ns}"

    @classmethod
    def execute(cls, table) -> io.NodeOutput:
        return io.NodeOutput(Calibration.load(calibration_file(table)))
