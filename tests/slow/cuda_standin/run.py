"""Opens a bundle on ONNX Runtime's real CUDA provider over a CUDA runtime that computes nothing.

What      Shows without a GPU which provider takes each operator of our graphs, that sessions open, that a
          pass copies what it should and no more, and that decode passes are recorded once and replayed.
          Answers and times mean nothing: kernels are not run.
Contract  Needs gcc, nm and an unpacked onnxruntime-gpu wheel; touches nothing outside its work folder:
              python tests/slow/cuda_standin/run.py WHEEL_FOLDER WORK_FOLDER [BUNDLE]
          Prints one JSON object. Its last result: docs/cuda.md#stand-in.
Elsewhere the same way over the CPU's provider, with real numbers: tests/runtime/test_cuda.py.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COUNTERS = (
    "copies_in", "copies_out", "copies_within", "bytes_in", "bytes_out", "kernels", "recorded", "replayed",
)  # fmt: skip
RUNTIME, DRIVER_LIBRARY, CUDNN = "libcudart.so.13", "libcuda.so.1", "libcudnn.so.9"
LIBRARIES = (RUNTIME, "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", DRIVER_LIBRARY, CUDNN)
BY_NAME = (DRIVER_LIBRARY, CUDNN)  # functions looked up by name, not by the loader
DRIVER = (
    "cuTensorMapEncodeTiled", "cuGetErrorName", "cuFuncSetAttribute", "cuLinkComplete", "cuModuleUnload",
    "cuLinkDestroy", "cuModuleLoadData", "cuLinkCreate_v2", "cuModuleGetFunction", "cuLinkAddFile_v2",
    "cuLinkAddData_v2", "cuLaunchCooperativeKernel", "cuLaunchKernel", "cuFuncSetCacheConfig",
    "cuDeviceGetAttribute",
)  # fmt: skip


def build(wheel: Path, work: Path) -> None:
    """Make the libraries that the provider asks the loader for."""
    provider = wheel / "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    nm = ["nm", "-D", "--undefined-only", str(provider)]
    told = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
    wanted = [line.split()[-1].split("@") for line in told.splitlines() if "@lib" in line]
    named = {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes())}
    for library in LIBRARIES:
        names = sorted({name for name, place in wanted if place == library})
        names = {DRIVER_LIBRARY: list(DRIVER), CUDNN: sorted(named)}.get(library, names)
        file, versions = work / f"{library}.c", work / f"{library}.map"
        file.write_text(source_of(library, names))
        versions.write_text(f"{library} {{ global: *; }};\n")
        options = [f"-Wl,-soname,{library}"]
        if names and library not in BY_NAME:
            options.append(f"-Wl,--version-script={versions}")
        gcc = ["gcc", "-w", "-O1", "-shared", "-fPIC", *options, "-o", str(work / library), str(file)]
        subprocess.run(gcc, check=True)


def source_of(library: str, names: list[str]) -> str:
    """standin.c, or what of it is this library's, and functions that return 0 for all other names."""
    source = (HERE / "standin.c").read_text()
    plain = source.replace("*", " ")
    left = [f"int {name}(void) {{ return 0; }}" for name in names if f" {name}(" not in plain]
    if library == RUNTIME:
        return source + "\n".join(left)
    ours = [line for line in source.splitlines() if any(f" {n}(" in line.replace("*", " ") for n in names)]
    head = "#include <stdlib.h>\nstatic int handle(void **p) { *p = malloc(64); return 0; }\n"
    return head + "\n".join([*ours, *left])


def counted(library: ctypes.CDLL) -> dict[str, int]:
    library.standin_counter.restype = ctypes.c_int64
    return {name: library.standin_counter(place) for place, name in enumerate(COUNTERS)}


def since(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in COUNTERS}


def placed(session: Any) -> dict[str, dict[str, int]]:
    """Operators by the provider that took them."""
    found = defaultdict[str, Counter[str]](Counter)
    for part in session.get_provider_graph_assignment_info():
        found[part.ep_name].update(node.op_type for node in part.get_nodes())
    return {name: dict(sorted(counts.items())) for name, counts in found.items()}


def look_and_ask(bundle: str | None, work: Path) -> dict[str, object]:
    """Load, look and decode; what was seen."""
    import numpy as np  # noqa: PLC0415
    import onnxruntime as ort  # noqa: PLC0415

    from rexthinker_edge.runtime.positions import text_positions  # noqa: PLC0415
    from rexthinker_edge.runtime.thinker import load  # noqa: PLC0415

    library = ctypes.CDLL(str(work / LIBRARIES[0]))
    thinker = load(bundle, device="cuda", threads=1)
    parts = thinker._parts
    decoder, report = parts.language.decoder, dict[str, object]()
    sessions = {
        "decoder": decoder.session, "vision": parts.vision.session, "detector": parts.detector._session,
        "detector-text": parts.detector._text,
    }  # fmt: skip
    report["onnxruntime"] = ort.__version__
    report["placed"] = {name: placed(session) for name, session in sessions.items() if session is not None}
    cache = decoder.new_cache(256)
    ids = [1 + i % 50 for i in range(80)]
    before = counted(library)
    decoder.run(decoder.embed(ids), text_positions(0, 80), cache)
    report["prefill of 80"] = since(before, counted(library))
    passes = []
    for width in (2, 2, 2, 5, 5, 2):
        before = counted(library)
        decoder.run(decoder.embed(ids[:width]), text_positions(cache.length, width), cache, last_only=False)
        passes.append({"tokens": width, **since(before, counted(library))})
        cache.rewind(80)
    report["decode"] = passes
    picture = np.full((112, 140, 3), 200, np.uint8)
    result = thinker.look(picture, "ball", [[10, 10, 60, 60]]).refer("the ball", max_new_tokens=6)
    report["refer"] = {"status": result.status.value, "generated": result.tokens.generated}
    return report


def main() -> None:
    wheel, work = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    if os.environ.get("LD_LIBRARY_PATH") != str(work):
        work.mkdir(parents=True, exist_ok=True)
        build(wheel, work)
        os.environ["LD_LIBRARY_PATH"] = str(work)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    sys.path.insert(0, str(wheel))
    print(json.dumps(look_and_ask(sys.argv[3] if len(sys.argv) > 3 else None, work), indent=1))


if __name__ == "__main__":
    main()
