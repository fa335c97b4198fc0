"""``python -m resilient_imagen.cli``, where the script is not on the path."""

from resilient_imagen.cli import main

main()
