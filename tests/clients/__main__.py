"""`python -m tests.clients URL MODEL`: runs all checks and prints a line for each; exit code 1 where one fails."""

import sys
import traceback
from importlib.metadata import version

from tests.clients.checks import CHECKS


def main(url: str, model: str) -> int:
    num_failed = 0
    for package, checks in CHECKS.items():
        for check in checks:
            name = f"{package} {version(package)}: {check.__name__}"
            try:
                check(url, model)
            except Exception as error:  # noqa: BLE001 - whatever a package raises is its verdict
                num_failed += 1
                print(f"FAILED {name}\n       {type(error).__name__}: {error}", flush=True)
                if "-v" in sys.argv:
                    traceback.print_exc()
            else:
                print(f"ok     {name}", flush=True)
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
