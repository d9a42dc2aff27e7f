"""Serves two requests on a CPU with one sampling parameter more: `least_id`, below which no token id is sampled.

Started with the folder of a model. Its schema is the repository's with the lines that the recipe "a sampling parameter"
of docs/extending.md asks for: the name of a need, and a field. Prints as JSON what followed from them.
"""

import json
import re
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import torch

SCHEMA = "engine_core.ipc.sampling_params"
FIELD = '    least_id: Annotated[int, Field("0 or more", 0, 2**31 - 1, column=INT, need=LEAST_ID)] = 0\n'


def extended(source: str) -> str:
    """The schema's source with the recipe's lines."""
    changes = (
        (r'(_NEEDS = \([^)]*")\)', r'\1, "least_id")'),
        (r"( = NEEDS\.values\(\))", r", LEAST_ID\1"),
        (r"(    min_p: Annotated)", FIELD.replace("\\", r"\\") + r"\1"),
    )
    for pattern, text in changes:
        source, count = re.subn(pattern, text, source, count=1)
        assert count == 1, f"The schema has no place like {pattern}."
    return source


def load_extended_schema() -> None:
    """Before anything imports the schema."""
    spec = find_spec(SCHEMA)
    assert spec is not None
    assert spec.origin is not None
    module = types.ModuleType(SCHEMA)
    sys.modules[SCHEMA] = module
    exec(compile(extended(Path(spec.origin).read_text()), spec.origin, "exec"), module.__dict__)


def main(folder: Path) -> None:
    load_extended_schema()
    import msgspec

    from engine_core.ipc.row_fields import ROW_FIELD_INDEX
    from engine_core.ipc.sampling_params import SamplingParams
    from frontend.llm.sampling_params import SamplingParams as LlmParams
    from frontend.protocol.chat import ChatCompletionRequest
    from kernels import cpu
    from kernels.step_tensors import RowTensors, SampledRows
    from tests.gpu_workers.plan_driver import Driver, Request
    from tests.gpu_workers.small_models import engine_config

    def rule_out(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
        for index, row in enumerate(step.rows.tolist()):
            logits[index, : int(step.fields[row, ROW_FIELD_INDEX["least_id"]])] = -torch.inf

    cpu.PROCESSORS["least_id"] = rule_out
    bound, free = Request([5, 6, 7], 6, 0, {"least_id": 150}), Request([5, 6, 7], 6, 1)
    Driver(engine_config(folder)).run([bound, free])
    try:
        SamplingParams(least_id=-1)  # type: ignore[call-arg]
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    request = msgspec.convert({"messages": [], "least_id": 3}, ChatCompletionRequest)
    found = {
        "bound": bound.output,
        "free": free.output,
        "refusal": refusal,
        "http": request.least_id,  # type: ignore[attr-defined]
        "llm": LlmParams(least_id=4).least_id,  # type: ignore[attr-defined,call-arg]
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
