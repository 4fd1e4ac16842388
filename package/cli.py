"""The command line: which verbs there are, and how an error ends.

Contract  Exit codes: 0 done, 1 error, 2 usage, 130 interrupted; `refer` adds 3, 4 and 5.
          An error is one line on stderr, `error: …`. A verb's module is imported when the verb is used.
Elsewhere the verbs: commands/.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata

import click

from rexthinker_edge.runtime.errors import MissingExtraError, RexThinkerError


@dataclass(frozen=True)
class Verb:
    """One verb: its line in the help, and the extra that its packages come with."""

    help: str
    extra: str | None = None


VERBS = {
    "bench": Verb("Measure speed and memory of a bundle on this machine."),
    "compare": Verb("Tell what a bundle loses against a checkpoint or another bundle.", "export"),
    "data": Verb("Make and inspect data sets."),
    "doctor": Verb("Check whether this machine really runs a bundle."),
    "evaluate": Verb("Tell how good a bundle, a checkpoint or predictions are on a dataset.", "export"),
    "export": Verb("Make a bundle of checkpoints.", "export"),
    "info": Verb("Say what a bundle is."),
    "plan": Verb("Say whether a bundle will fit a device, and how fast it should be."),
    "prepare": Verb("Pack a bundle's weights for this machine once, to open them by mapping."),
    "refer": Verb("Find what an expression means in a picture."),
    "train": Verb("Train the models.", "training"),
    "verify": Verb("Check that a bundle is intact."),
}


class LazyGroup(click.Group):
    """A click group whose commands are imported when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, sorted."""
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module; None when there is no such verb."""
        if cmd_name not in VERBS:
            return None
        try:
            module = import_module(f"rexthinker_edge.commands.{cmd_name}")
        except ModuleNotFoundError as error:
            raise _missing(cmd_name, error) from error
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command), cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs' own lines, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, VERBS[name].help) for name in self.list_commands(ctx)])


def _version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"rexthinker-edge {metadata.version('rexthinker-edge')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def program() -> None:
    """Find things in pictures by what is said of them, with the reasons."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:  # noqa: PLR0911 - one way out per kind of end
    """Run the command line and return its exit code."""
    try:
        code = program.main(list(arguments), prog_name="rexthinker-edge", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "rexthinker-edge"
        return _told(f"{error.format_message()} See `{command} --help`.", 2)
    except click.ClickException as error:
        return _told(error.format_message(), 1)
    except RexThinkerError as error:
        return _told(str(error), 1)
    except ModuleNotFoundError as error:
        return _told(str(_missing(arguments[0], error)), 1)
    except (KeyboardInterrupt, click.Abort):
        return _told("interrupted", 130)
    except BrokenPipeError:
        # Whoever read us has gone: nothing is left to say, also at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _missing(verb: str, error: ModuleNotFoundError) -> Exception:
    package = (error.name or "").partition(".")[0]
    extra = VERBS[verb].extra if verb in VERBS else None
    if package == "rexthinker_edge" or extra is None:
        return error
    return MissingExtraError(
        f"{verb}: the package {package} is not installed, the base install leaves it out. "
        f"Install it: pip install 'rexthinker-edge[{extra}]'."
    )


def _told(message: str, code: int) -> int:
    click.echo("error: " + " ".join(message.split()), err=True)
    return code
