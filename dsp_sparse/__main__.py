"""`python -m dsp_sparse` is the command `dsp-sparse`."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the program; where a package that it needs is missing or broken, say so, the doctor at length."""
    try:
        from .cli import main
    except KeyboardInterrupt:  # the imports take seconds
        print("interrupted: nothing was begun", file=sys.stderr)
        sys.exit(130)
    except (ImportError, OSError) as error:  # OSError: a library that a package was compiled for
        from .doctor import diagnose

        if sys.argv[1:2] == ["doctor"]:
            sys.exit(diagnose())
        reason = " ".join(str(error).split())
        print(f"dsp-sparse: error: {reason}; `dsp-sparse doctor` says what is missing", file=sys.stderr)
        sys.exit(2)
    main()


if __name__ == "__main__":
    main()
