"""`quire plan MODEL`: prints the resolved settings and the memory plan and starts nothing."""

from frontend.cli.flags import ServeArgs
from frontend.cli.report import format_report
from frontend.cli.resolve import resolve


def run(args: ServeArgs) -> int:
    print(format_report(resolve(args)))
    return 0
