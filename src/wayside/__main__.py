"""``python -m wayside`` is the ``wayside`` command."""

from wayside.cli.main import main

main()
