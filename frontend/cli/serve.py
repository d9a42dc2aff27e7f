"""`quire serve MODEL`: prints the plan, then hands over to the supervisor."""

from frontend.cli.flags import ServeArgs
from frontend.cli.report import format_report
from frontend.cli.resolve import resolve
from frontend.supervisor.supervisor import Supervisor


def run(args: ServeArgs) -> int:
    resolved = resolve(args)
    supervisor = Supervisor(resolved)
    with supervisor:  # what is opened here is closed in any case
        print(format_report(resolved), flush=True)
        return supervisor.run()
