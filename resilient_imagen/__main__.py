"""``python -m resilient_imagen``: the command line, where its script is not on the path."""

from resilient_imagen.cli import main

main()
