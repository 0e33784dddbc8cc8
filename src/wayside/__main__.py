"""``python -m wayside`` is the ``wayside`` command."""

from wayside.cli import main

main()
