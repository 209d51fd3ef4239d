"""The ``assay`` command. Nothing else is imported until a Ctrl-C is understood."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``assay`` command; ``assay --version`` answers without any of the rest."""
    try:
        if sys.argv[1:] == ["--version"]:
            from importlib import metadata

            print(f"assay {metadata.version('assay')}")
            return
        from assay.cli import main as command

        command()
    except KeyboardInterrupt:
        print("assay: stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
