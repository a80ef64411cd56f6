"""`python -P -m deploy.cli`: the same as `headrace`."""

from deploy.cli import main

main()
