"""`maya1-tts optimize`: the steps, one by one or in order, and their exit codes."""

import argparse
from collections.abc import Callable
from pathlib import Path

from maya1_tts.errors import ConfigError
from maya1_tts.optimize.fp16 import to_fp16
from maya1_tts.optimize.int8 import Runtime, to_int8
from maya1_tts.optimize.judge import Bounds, Render, Result, onnx_render, write_if_good
from maya1_tts.optimize.report import line, write_report
from maya1_tts.optimize.subject import Subject, snac_subject, subject_of
from maya1_tts.optimize.trt import NotHere, build

BOUNDS = {
    "export": Bounds(min_snr_db=60, max_log_mel_db=0.05),
    "fp16": Bounds(min_snr_db=30, max_log_mel_db=0.5),
    "int8": Bounds(min_snr_db=12, max_log_mel_db=2.0),
    "tensorrt": Bounds(min_snr_db=12, max_log_mel_db=2.0),
}
DONE, REFUSED, NOT_HERE = 0, 3, 4
DECODER = "decoder_model.onnx"  # where engine maya1 looks for it, in its folder snac/


class Work:
    """One source, and what its results are compared with: torch's decoder, or the graph itself."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder: Path = options.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results: list[Result] = []
        source: Path = options.source
        self.graph: Path | None = None if source.is_dir() else source
        self.subject: Subject
        self.reference: Render
        if self.graph:
            self.subject = subject_of(self.graph, options.data)
            self.reference = onnx_render(self.graph, self.subject)
        else:
            self.subject = snac_subject(options.data)

    def bounds(self, step: str) -> Bounds:
        chosen, own = self.options, BOUNDS[step]
        return Bounds(
            own.min_snr_db if chosen.min_snr is None else chosen.min_snr,
            own.max_log_mel_db if chosen.max_log_mel is None else chosen.max_log_mel,
            chosen.max_wer_rise,
        )

    def export(self) -> None:
        if self.graph:
            raise ConfigError(f"{self.graph} is a graph already; allowed: the folder of a SNAC codec.")
        import torch

        from maya1_tts.engines.maya1.codec import load_decoder
        from maya1_tts.optimize.export import export_decoder, torch_render

        torch.set_num_threads(1)
        decoder = load_decoder(self.options.source)
        self.reference = torch_render(decoder)
        weights = self.options.source / "pytorch_model.bin"
        target = self.folder / DECODER
        self._write("export", target, lambda draft: export_decoder(decoder, draft), weights)
        if self.results[-1].status == "written":
            self.graph = target
            self.reference = onnx_render(target, self.subject)

    def fp16(self) -> None:
        graph = self._graph()
        self._write("fp16", self._target("fp16"), lambda draft: to_fp16(graph, draft), graph)

    def int8(self, runtime: Runtime) -> None:
        graph = self._graph()
        keep = self.subject.keep_float if self.options.keep_float is None else self.options.keep_float
        name = "int8" if runtime == "cpu" else "int8-tensorrt"
        self._write(
            name,
            self._target(name),
            lambda draft: to_int8(graph, draft, self.subject.calibrating, keep, runtime),
            graph,
            runtime,
        )

    def tensorrt(self, graph: Path | None = None) -> None:
        """The engine of a graph that earlier steps made, against the graph they made it from."""
        graph = graph or self._graph()
        try:
            result = build(
                graph, self.folder, self.reference, self._graph(), self.subject,
                self.bounds("tensorrt"), self.options.runs,
            )  # fmt: skip
        except NotHere as error:
            result = Result(f"tensorrt {graph.stem}", "not run", [str(error)])
        except RuntimeError as error:
            result = Result(f"tensorrt {graph.stem}", "refused", [str(error)])
        self._add(result)

    def run(self) -> None:
        steps: list[tuple[str, Callable[[], None]]] = [
            ("export", self.export),
            ("fp16", self.fp16),
            ("int8 for the CPU", lambda: self.int8("cpu")),
            ("int8 for TensorRT", lambda: self.int8("tensorrt")),
            ("tensorrt from fp16", lambda: self._engine_of("fp16")),
            ("tensorrt from int8", lambda: self._engine_of("int8-tensorrt")),
        ]
        steps = steps[1:] if self.graph else steps
        for number, (name, step) in enumerate(steps, 1):
            print(f"[{number}/{len(steps)}] {name}", flush=True)
            step()
            if self.graph is None:
                return  # the export was refused, and all others begin with it

    def _engine_of(self, step: str) -> None:
        made = next(result for result in self.results if result.step == step)
        if made.status == "written":
            self.tensorrt(self._target(step))
        else:
            self._add(Result(f"tensorrt {self._target(step).stem}", "not run", [f"{step} was refused"]))

    def finish(self) -> int:
        write_report(self.folder, self.options.source, self.subject, self.results)
        print(f"report: {self.folder / 'optimize.md'}", flush=True)
        statuses = {result.status for result in self.results}
        if "refused" in statuses:
            return REFUSED
        return NOT_HERE if statuses == {"not run"} else DONE

    def _graph(self) -> Path:
        if self.graph is None:
            raise ConfigError(f"{self.options.source} is a folder; allowed: an ONNX graph, after `export`.")
        return self.graph

    def _target(self, suffix: str) -> Path:
        return self.folder / f"{self._graph().stem}-{suffix}.onnx"

    def _write(
        self,
        step: str,
        target: Path,
        make: Callable[[Path], object],
        reference: Path,
        runtime: Runtime = "cpu",
    ) -> None:
        result = write_if_good(
            step, target, make, self.reference, reference, self.subject,
            self.bounds(step.split("-")[0]), self.options.runs, runtime,
        )  # fmt: skip
        self._add(result)

    def _add(self, result: Result) -> None:
        self.results.append(result)
        print(f"  {line(result)}", flush=True)


def optimize(options: argparse.Namespace) -> int:
    """Returns 0 when nothing was refused, 3 when something was, 4 when nothing could be run here."""
    work = Work(options)
    if options.step == "int8":
        work.int8(options.runtime)
    else:
        getattr(work, options.step)()
    return work.finish()
