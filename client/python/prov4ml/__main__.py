"""`python -m prov4ml --alias-path` prints the folder that makes `import yprov4ml` mean this package."""

from __future__ import annotations

import argparse
import os

import prov4ml


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m prov4ml", description="The client of the prov4ml agent.")
    parser.add_argument("--version", action="version", version=prov4ml.__version__)
    parser.add_argument(
        "--alias-path",
        action="store_true",
        help="print the folder to put on PYTHONPATH so that `import yprov4ml` means this package",
    )
    if parser.parse_args().alias_path:
        print(os.path.join(os.path.dirname(os.path.abspath(prov4ml.__file__)), "alias"))
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
