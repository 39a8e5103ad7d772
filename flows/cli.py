"""The command line, `bitfount-flows`; its commands are in `flows/commands`.

Nothing heavy is imported until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
import traceback

import click

from flows.commands.apply import evaluate, predict
from flows.commands.deploy import automations, deploy
from flows.commands.jobs import compare, runs, show
from flows.commands.keys import keys
from flows.commands.models import models
from flows.commands.pod import pod
from flows.commands.retrain import retrain
from flows.commands.servers import down, up
from flows.commands.train import train
from flows.commands.ui import ui
from flows.exit_codes import CODES_HELP, INTERRUPTED, UNEXPECTED, exit_code
from tasks.memory import garbage_left_at_exit


@click.group(epilog=CODES_HELP)
@click.version_option(package_name="bitfount-flows")
def cli() -> None:
    """Train, evaluate and apply PyTorch models as a workflow that can be killed and continued."""


for each in (
    train,
    evaluate,
    predict,
    retrain,
    runs,
    show,
    compare,
    deploy,
    automations,
    models,
    pod,
    keys,
    up,
    down,
    ui,
):
    cli.add_command(each)


def main() -> None:
    """Runs the command line and exits with its code; see `--help`."""
    garbage_left_at_exit()
    verbose = "--verbose" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.UsageError):
            error.show()
        else:
            click.echo(f"error: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(report(error, verbose))
    sys.exit(code if isinstance(code, int) else 0)


def report(error: Exception, verbose: bool) -> int:
    """Prints an error for people and gives its exit code."""
    code = exit_code(error)
    if verbose:
        traceback.print_exception(error)
    if code == UNEXPECTED:
        click.echo(f"error: {type(error).__name__}: {error}\n(run with --verbose for the traceback)", err=True)
    else:
        click.echo(f"error: {error}", err=True)
    return code


if __name__ == "__main__":
    main()
