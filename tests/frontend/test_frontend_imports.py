"""What the frontend's packages load: they start fast, and the client goes into programs that have nothing of ours."""

import subprocess
import sys


def test_the_client_package_needs_only_zmq_and_msgpack():
    code = (
        "import sys; import frontend.client; "
        "loaded = {name.partition('.')[0] for name in sys.modules}; "
        "print(sorted(loaded & {'msgspec', 'numpy', 'sanic', 'torch', 'transformers', 'tokenizers', 'uvloop', "
        "'engine_core', 'gpu_workers', 'kernels'}))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_a_frontend_loads_neither_torch_nor_transformers():
    code = (
        "import sys; import frontend.app, frontend.server, frontend.__main__; "
        "from frontend.routes import ROUTES; import importlib; "
        "[importlib.import_module(route.handler.partition(':')[0]) for route in ROUTES]; "
        "loaded = {name.partition('.')[0] for name in sys.modules}; "
        "print(sorted(loaded & {'torch', 'transformers', 'triton', 'gpu_workers', 'kernels'}))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
