"""`python -m dsp_sparse` is the command `dsp-sparse`."""

from .cli import main

main()
