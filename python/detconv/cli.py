"""The command line: ``detconv info``, ``demo``, ``judge``, ``diagnose`` and ``reveal``."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from detconv import _core, config

SHELLS = ("bash", "zsh", "tcsh")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a command line that makes no sense exits with 2."""
    namespace = _parser().parse_args(arguments)
    try:
        _core.build_info()  # before any work: says what is wrong with DETCONV_ISA
    except ValueError as error:
        print(f"detconv: error: {error}", file=sys.stderr)
        return 2
    run: Callable[[argparse.Namespace], int] = namespace.run
    return run(namespace)


def _parser() -> argparse.ArgumentParser:
    from detconv import demo
    from detconv.revealing import command as reveal
    from detconv.verdict import command as judge

    parser = argparse.ArgumentParser("detconv", description="Deterministic conv2d whose summation is written down.")
    parser.add_argument("--version", action="version", version=f"detconv {_core.__version__}")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=SHELLS,
        help="print a script that completes this command's words in a shell: "
        "detconv --print-completion bash > ~/.local/share/bash-completion/completions/detconv",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    help_info = "how detconv was built, what it runs on, and what it found beside it"
    info = commands.add_parser("info", help=help_info, description=f"Print {help_info}.")
    info.add_argument("--json", action="store_true", help="print one JSON object in place of the text")
    info.set_defaults(run=_info)

    help_demo = "Is PyTorch's Conv2d against a NumPy reference a rounding error or a mistake?"
    parser_demo = commands.add_parser("demo", help=help_demo, description=help_demo)
    demo.add_arguments(parser_demo)
    parser_demo.set_defaults(run=demo.run)

    parser_judge = commands.add_parser("judge", help=judge.HELP, description=judge.DESCRIPTION)
    judge.add_arguments(parser_judge)
    parser_judge.set_defaults(run=judge.run)

    parser_diagnose = commands.add_parser("diagnose", help=judge.HELP_DIAGNOSE, description=judge.DESCRIPTION_DIAGNOSE)
    judge.add_arguments_of_diagnose(parser_diagnose)
    parser_diagnose.set_defaults(run=judge.run_diagnose)

    help_reveal = "in which order does a function that convolves add, and do its bits prove it?"
    parser_reveal = commands.add_parser("reveal", help=help_reveal, description=reveal.DESCRIPTION)
    reveal.add_arguments(parser_reveal)
    parser_reveal.set_defaults(run=reveal.run)
    return parser


class _Completion(argparse.Action):
    """Print the script and exit; made by shtab, which only who asks for it needs."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option: str | None = None) -> None:
        try:
            import shtab
        except ImportError:
            parser.error("--print-completion needs shtab, which is not installed (pip install 'detconv[completion]')")
        print(shtab.complete(parser, shell=shell))
        parser.exit()


def _info(namespace: argparse.Namespace) -> int:
    entries = {
        **config.build_info(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        **{package: _version_of(package) for package in ("numpy", "torch")},
    }
    print(json.dumps({"format": 1, **entries}, indent=1) if namespace.json else config.as_lines(entries))
    return 0


def _version_of(package: str) -> str:
    """The installed version, read from the package's metadata: torch takes seconds to import."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
