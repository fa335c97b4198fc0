"""``python -m resilient_imagen``: the command line, without its script on the path."""

from resilient_imagen.cli import main

main()
