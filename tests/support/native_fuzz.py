"""Random calls of the compiled kernels against float64, as a program: also under an instrumented library.

    python tests/support/native_fuzz.py COUNT [FIRST_SEED]

Needs `myfla`, `myfla_native` and this folder on the path. Ends with status 1 at the first ten failures.
"""

import sys

import torch

import native_modules
from myfla.utils.native import missing_native


def main():
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    if missing_native():
        sys.exit(missing_native())
    torch.set_num_threads(2)
    failed = 0
    for kind in native_modules.KINDS:
        for seed in range(first, first + count):
            try:
                native_modules.check(kind, seed)
            except AssertionError as problem:
                failed += 1
                print(problem, file=sys.stderr)
                if failed == 10:
                    sys.exit(1)
    print(f"{count} random calls of each of {', '.join(native_modules.KINDS)}: {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
