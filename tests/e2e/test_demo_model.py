"""The demo model's card, in short: its judge asks a tenth of the questions through the server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.server import Server

JUDGE = Path(__file__).parents[2] / "scripts" / "eval_demo_model.py"
ROW = re.compile(r"^\| (.+) \| >= (\d+)% \| ([\d.]+)% \|$", re.MULTILINE)


@pytest.mark.slow
def test_the_server_reaches_the_cards_figures(server: Server) -> None:
    judged = subprocess.run(
        [sys.executable, str(JUDGE), "--quick", "--base-url", f"{server.url}/v1"],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    rows = ROW.findall(judged.stdout)
    assert len(rows) == 6, judged.stdout
    for figure, wanted, reached in rows:
        assert float(reached) >= float(wanted), f"{figure}: {reached} %"
