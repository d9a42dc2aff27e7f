"""A frontend that says what only the collector of reference cycles would free.

Started like `python -m frontend`, with one argument more, a fifo. On SIGUSR1 it writes the kinds of such objects there,
as JSON.
"""

import gc
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from frontend.__main__ import main

fifo = Path(sys.argv.pop(1))


def tell(number: int, frame: FrameType | None) -> None:
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    kinds = Counter(type(each).__name__ for each in gc.garbage)
    gc.set_debug(0)
    gc.garbage.clear()
    fifo.write_text(json.dumps({"kinds": kinds, "threshold": gc.get_threshold()[0], "frozen": gc.get_freeze_count()}))


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, tell)
    sys.exit(main())
