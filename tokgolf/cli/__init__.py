"""The command line: commands parse, call one library function and print. No logic lives here.

Every heavy import is inside the command that needs it, so that `--help` answers at once.
"""

import errno
import os
import sys

import click

from tokgolf import __version__
from tokgolf.cli import (
    audit,
    compare,
    completion,
    convert,
    corpus,
    cost,
    doctor,
    export,
    golf,
    heads,
    inspect,
    predict,
    proof,
    report,
    sample,
    score,
    submit,
    sweep,
    tokenizer,
    train,
)
from tokgolf.cli.options import say, unread_allowed
from tokgolf.errors import OtherRankError, TokgolfError
from tokgolf.threads import short_spin


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Which tokenizer and which output head buy the most score per stored byte?

    Builds a tokenizer, trains a small language model with a swappable output head, packs both
    into one artifact under a byte cap, and scores what is read back, in bits per byte.

    Example: tokgolf golf
    """


for command in (
    golf.golf,
    corpus.corpus,
    tokenizer.build_tokenizer,
    convert.import_tokenizer,
    convert.export_tokenizer,
    convert.export_weights,
    heads.heads,
    cost.cost,
    train.train,
    export.export,
    score.score,
    sweep.sweep,
    audit.audit,
    compare.compare,
    predict.predict,
    proof.compress,
    proof.decompress,
    sample.sample,
    inspect.inspect,
    submit.submit,
    report.report,
    doctor.doctor,
    completion.completion,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit: 0 done, 1 the work failed (one line why), 2 usage."""
    os.environ.update(short_spin())
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line on `arguments` and return the exit code."""
    try:
        code = cli.main(args=arguments, prog_name="tokgolf", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        if not ("MASTER_ADDR" in os.environ and os.environ.get("RANK", "0") != "0"):
            with unread_allowed():
                error.show()  # the same on all processes of torchrun: the first says it
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        message = "interrupted"
    except OtherRankError:
        return 1
    except TokgolfError as error:
        message = str(error)
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not try to flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        message = _os_error(error)
    say(f"error: {' '.join(message.split())}")
    return 1


HINTS = {
    errno.ENOENT: "check the path",
    errno.EEXIST: "a folder is to be made there; choose another -o",
    errno.ENOTDIR: "a part of this path is a file; choose another",
    errno.EISDIR: "name a file",
    errno.EACCES: "change its permissions or choose another path",
}


def _os_error(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{place}the disk is full ({error.strerror}); free some space or choose another -o"
    hint = HINTS.get(error.errno or 0)
    return f"{place}{error.strerror or error}" + (f"; {hint}" if hint else "")
